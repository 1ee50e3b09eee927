// Writes a run's lines: on a terminal the newest progress stays on the last line and is written
// over; elsewhere every line is plain. Whoever watches the run must not stop for a reader that has
// stopped (a full pipe, Ctrl-S): lines that cannot be written at once are left out and counted.
// Threading: one thread.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "launch/cli/display.h"

namespace paceline::cli {

class ProgressOutput {
 public:
  explicit ProgressOutput(std::FILE* stream);

  bool is_terminal() const { return is_terminal_; }
  void Show(const ProgressReporter::Lines& lines);
  void Event(const std::string& line);
  // Leaves the last progress line standing; what follows begins on a line of its own.
  void Finish();

 private:
  // Whether a short line can be written without waiting; says then what was left out before.
  bool CanWrite();
  void Erase();
  void Draw();

  std::FILE* stream_;
  bool is_terminal_;
  std::int64_t left_out_ = 0;  // events
  std::string progress_;
  std::string short_progress_;
};

}  // namespace paceline::cli
