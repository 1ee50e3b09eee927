// Listing of checkpoint folders.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "worker/checkpoint/checkpoint.h"

namespace paceline {

std::vector<std::string> ListCheckpoints(const std::string& dir) {
  std::vector<std::pair<CheckpointName, std::string>> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    const auto name = ParseCheckpointFolderName(entry.path().filename().string());
    if (name && std::filesystem::is_regular_file(entry.path() / "manifest.json", error)) {
      found.emplace_back(*name, entry.path());
    }
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> folders;
  for (auto& [name, folder] : found) folders.push_back(std::move(folder));
  return folders;
}

}  // namespace paceline
