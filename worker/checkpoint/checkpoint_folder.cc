// Names and listing of checkpoint folders.
#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "worker/checkpoint/checkpoint.h"

namespace paceline {

std::string CheckpointFolderName(std::int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "step-%08lld", static_cast<long long>(step));
  return name;
}

std::vector<std::string> ListCheckpoints(const std::string& dir) {
  std::vector<std::pair<std::int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    const std::string name = entry.path().filename();
    long long step = 0;
    int end = 0;
    if (std::sscanf(name.c_str(), "step-%lld%n", &step, &end) != 1 || step < 0 ||
        name != CheckpointFolderName(step)) {
      continue;
    }
    if (std::filesystem::is_regular_file(entry.path() / "manifest.json", error)) {
      found.emplace_back(step, entry.path());
    }
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> folders;
  for (auto& [step, folder] : found) folders.push_back(std::move(folder));
  return folders;
}

}  // namespace paceline
