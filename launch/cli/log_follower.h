// A run's log files as one stream of lines, each with its source in front: "rank-00001 | text".
// Invariant: every line is given once, whole; a line without its newline waits for it until
// Finish.
// Threading: one thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace paceline::cli {

class LogFollower {
 public:
  // The logs in `folder`; of `rank` alone where it is given.
  LogFollower(std::string folder, std::optional<int> rank);

  // What has been written since the last call, by file; files that are new are found.
  std::vector<std::string> NewLines();
  // And what stands at the files' ends without a newline.
  std::vector<std::string> Finish();
  // There is no file to read from (yet).
  bool empty() const { return files_.empty(); }

 private:
  struct File {
    std::int64_t offset = 0;
    std::string partial;
  };
  void Read(const std::string& name, File& file, std::vector<std::string>& lines);

  std::string folder_;
  std::optional<int> rank_;
  std::map<std::string, File> files_;  // by source name
};

}  // namespace paceline::cli
