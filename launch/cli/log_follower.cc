#include "launch/cli/log_follower.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

namespace paceline::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kChunkBytes = 1 << 16;
constexpr std::size_t kLineBytesMax = 1 << 16;

std::string RankSource(int rank) {
  char name[32];
  std::snprintf(name, sizeof name, "rank-%05d", rank);
  return name;
}

}  // namespace

LogFollower::LogFollower(std::string folder, std::optional<int> rank)
    : folder_(std::move(folder)), rank_(rank) {}

std::vector<std::string> LogFollower::NewLines() {
  std::error_code error;
  for (fs::directory_iterator entry(folder_, error), end; !error && entry != end;
       entry.increment(error)) {
    const fs::path& path = entry->path();
    if (path.extension() != ".log") continue;
    const std::string source = path.stem().string();
    if (!rank_.has_value() || source == RankSource(*rank_)) files_.try_emplace(source);
  }
  std::vector<std::string> lines;
  for (auto& [source, file] : files_) Read(source, file, lines);
  return lines;
}

std::vector<std::string> LogFollower::Finish() {
  std::vector<std::string> lines = NewLines();
  for (auto& [source, file] : files_) {
    if (!file.partial.empty()) lines.push_back(source + " | " + file.partial);
    file.partial.clear();
  }
  return lines;
}

void LogFollower::Read(const std::string& name, File& file, std::vector<std::string>& lines) {
  std::ifstream in(folder_ + "/" + name + ".log", std::ios::binary);
  in.seekg(file.offset);
  std::string chunk(kChunkBytes, '\0');
  while (in.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || in.gcount() > 0) {
    file.offset += in.gcount();
    for (std::streamsize i = 0; i < in.gcount(); ++i) {
      const char c = chunk[static_cast<std::size_t>(i)];
      if (c != '\n' && file.partial.size() < kLineBytesMax) {
        file.partial.push_back(c);
        continue;
      }
      lines.push_back(name + " | " + std::exchange(file.partial, {}));
      if (c != '\n') file.partial.push_back(c);
    }
  }
}

}  // namespace paceline::cli
