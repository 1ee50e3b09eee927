// What a run looks like to the one who watches it: lines of text, made from its status.
// Threading: values and pure functions; a ProgressReporter belongs to one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "paceline/v1/coordinator.pb.h"

namespace paceline::cli {

// How fast a run goes, over the last few seconds of what was seen of it.
// Invariant: samples are in order of time and step; a step that goes back (a rollback) begins
// anew.
class RateWindow {
 public:
  void Add(double seconds, std::int64_t step);
  // 0 while unknown.
  double SecondsPerStep() const;

 private:
  struct Sample {
    double seconds;
    std::int64_t step;
  };
  std::deque<Sample> samples_;
};

// Where the ranks' time in steps went, all ranks together.
struct TimeShares {
  double step_seconds = 0;
  double compute_seconds = 0;
  double exposed_communication_seconds = 0;
  double pipeline_wait_seconds = 0;  // for other stages
  double data_wait_seconds = 0;
};
TimeShares SharesOf(const v1::RunStatus& status);

// "step 120/300 | loss 2.4312 | 51.2k tokens/s | compute 91 %, communication 6 %, data 1 % |
// 1m 12s left | 0.0123 EUR". Values that are not known yet are left out.
std::string ProgressLine(const v1::RunStatus& status, const RateWindow& rate);
// The same for a narrow terminal: "120/300 loss 2.4312 51.2k/s comp 91 % comm 6 % data 1 % 1m 12s
// left 0.0123 EUR".
std::string ShortProgressLine(const v1::RunStatus& status, const RateWindow& rate);

// The longer of the two that fits `columns` (0: unknown), else the shorter one cut, so that a
// terminal never wraps it.
std::string FitToColumns(const std::string& line, const std::string& short_line, int columns);

// Turns successive states of a run into lines: what has happened (a new state, an evaluation, a
// checkpoint, a recovery), and now and then how far it is.
class ProgressReporter {
 public:
  struct Lines {
    std::vector<std::string> events;  // each printed once
    std::string progress;             // the newest; empty before the first step
    std::string short_progress;
  };

  // `plain`: no terminal, so progress goes among the events, every ten seconds at first and less
  // often in a long run, or each 5 % of the steps.
  explicit ProgressReporter(bool plain) : plain_(plain) {}

  Lines Update(const v1::RunStatus& status, double seconds);

 private:
  bool IsProgressDue(const v1::RunStatus& status, double seconds) const;

  bool plain_;
  RateWindow rate_;
  v1::RunState state_ = v1::RUN_STATE_UNSPECIFIED;
  std::string reason_;
  std::int64_t recoveries_ = 0;
  std::int64_t eval_step_ = 0;
  std::int64_t checkpoint_step_ = 0;
  bool first_ = true;
  std::int64_t printed_step_ = 0;
  double printed_seconds_ = 0;
};

}  // namespace paceline::cli
