// steps.jsonl and evals.jsonl: one line a step or evaluation, as rank 0 reports them.
// Invariant: every line is whole and valid JSON, and numbers read back to the same bits; what is
// not finite is null.
// Threading: the lines from any thread; a LineFile on one at a time.
#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"
#include "paceline/v1/training.pb.h"

namespace paceline {

// A line without its newline. `tokens` counts the lineage up to and with this step.
std::string StepLine(const v1::StepRecord& record, std::int64_t tokens, std::uint64_t generation);
std::string EvalLine(const v1::EvalRecord& record, std::uint64_t generation);

// A file that lines are appended to; readers see whole lines at once.
class LineFile {
 public:
  // Makes the file if need be. A torn last line (a crash, a full disk) is cut off.
  static absl::StatusOr<LineFile> Open(const std::string& path);
  ~LineFile();
  LineFile(LineFile&& other) noexcept;
  LineFile& operator=(LineFile&& other) noexcept;

  // Hands `line` to the system before it returns. On an error nothing of the line stays.
  absl::Status Append(const std::string& line);
  // Of the last line; 0: there is none.
  absl::StatusOr<std::int64_t> LastStep() const;

 private:
  LineFile(int fd, std::string path);

  int fd_;
  std::string path_;
};

}  // namespace paceline
