// One log format for every program: time with its zone, level, program[pid], text.
// Programs log through spdlog's default logger (spdlog::info, ...), which this sets up.
// Threading: SetUpLogging once, before other threads start. Logging never waits with
// LogOptions.background; without it, it waits for the disk.
#pragma once

#include <string>

#include "common/status.h"

namespace paceline {

struct LogOptions {
  std::string program;         // "paceline-coordinator"
  std::string level = "info";  // trace, debug, info, warning, error, critical, off
  std::string file;            // empty: stderr. Kept under 64 MiB, with two older ones beside it
  // A thread of its own writes, for programs with a loop that must not wait for a disk: where it
  // falls behind, the oldest lines are lost, and a crash may lose the last ones.
  bool background = false;
};

// kInvalidArgument: the level is unknown, or the file cannot be written.
absl::Status SetUpLogging(const LogOptions& options);

}  // namespace paceline
