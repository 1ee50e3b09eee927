#include "launch/cli/display.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/run_state.h"
#include "launch/cli/format.h"
#include "launch/cli/summary.h"

namespace paceline::cli {
namespace {

constexpr double kRateSeconds = 10;
constexpr std::size_t kRateSamplesMax = 256;
constexpr double kPlainSeconds = 10;
// A run of a day prints some dozens of lines an hour, not hundreds.
constexpr double kPlainPartOfRun = 1.0 / 60;
constexpr double kPlainPartOfSteps = 0.05;

std::string Loss(double loss) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", loss);
  return text;
}

std::string StateLine(const v1::RunStatus& status) {
  std::string text = RunStateName(status.state());
  if (status.state() == v1::RUN_STATE_STARTING) {
    text += " generation " + std::to_string(status.generation());
    if (status.layout().data() > 0) {
      text += " on " + FormatNumberOf(std::int64_t{status.layout().data()} *
                                          std::max(status.layout().pipeline(), 1),
                                      "rank");
    }
  }
  if (!status.reason().empty()) text += ": " + status.reason();
  return text;
}

// The words around a progress line's values.
struct LineWords {
  const char* step;
  const char* rate;
  const char* compute;
  const char* communication;
  const char* data;
  const char* stages;  // waiting for other pipeline stages
  const char* between;
};

std::string Line(const v1::RunStatus& status, const RateWindow& rate, const LineWords& words) {
  const std::string between = words.between;
  std::string line = words.step + std::to_string(status.step().step()) + "/" +
                     std::to_string(status.steps_total()) + between + "loss " +
                     Loss(status.step().loss());
  if (rate.SecondsPerStep() > 0) {
    // Every step of a run has as many tokens.
    const double tokens = static_cast<double>(status.step().tokens());
    line += between + FormatCount(tokens / rate.SecondsPerStep()) + words.rate;
  }
  const TimeShares shares = SharesOf(status);
  if (shares.step_seconds > 0) {
    line += between + words.compute + FormatShare(shares.compute_seconds, shares.step_seconds) +
            words.communication +
            FormatShare(shares.exposed_communication_seconds, shares.step_seconds) + words.data +
            FormatShare(shares.data_wait_seconds, shares.step_seconds);
    if (status.layout().pipeline() > 1) {
      line += words.stages + FormatShare(shares.pipeline_wait_seconds, shares.step_seconds);
    }
  }
  if (rate.SecondsPerStep() > 0) {
    const auto left = static_cast<double>(status.steps_total() - status.step().step());
    line += between + FormatDuration(left * rate.SecondsPerStep()) + " left";
  }
  if (status.cost() > 0) line += between + FormatMoney(status.cost(), status.currency());
  return line;
}

}  // namespace

void RateWindow::Add(double seconds, std::int64_t step) {
  if (!samples_.empty() && step < samples_.back().step) samples_.clear();
  if (!samples_.empty() && step == samples_.back().step) return;
  samples_.push_back({seconds, step});
  // Two samples stay, however old: a step may take longer than the window.
  while (samples_.size() > 2 &&
         (samples_.size() > kRateSamplesMax || seconds - samples_.front().seconds > kRateSeconds)) {
    samples_.pop_front();
  }
}

double RateWindow::SecondsPerStep() const {
  if (samples_.size() < 2) return 0;
  return (samples_.back().seconds - samples_.front().seconds) /
         static_cast<double>(samples_.back().step - samples_.front().step);
}

TimeShares SharesOf(const v1::RunStatus& status) {
  TimeShares shares;
  for (const v1::RankProgress& rank : status.ranks()) {
    shares.step_seconds += rank.step_seconds();
    shares.compute_seconds += rank.compute_seconds();
    shares.exposed_communication_seconds += rank.exposed_communication_seconds();
    shares.pipeline_wait_seconds += rank.pipeline_wait_seconds();
    shares.data_wait_seconds += rank.data_wait_seconds();
  }
  return shares;
}

std::string ProgressLine(const v1::RunStatus& status, const RateWindow& rate) {
  return Line(status, rate,
              {.step = "step ",
               .rate = " tokens/s",
               .compute = "compute ",
               .communication = ", communication ",
               .data = ", data ",
               .stages = ", stages ",
               .between = " | "});
}

std::string ShortProgressLine(const v1::RunStatus& status, const RateWindow& rate) {
  return Line(status, rate,
              {.step = "",
               .rate = "/s",
               .compute = "comp ",
               .communication = " comm ",
               .data = " data ",
               .stages = " stages ",
               .between = " "});
}

std::string FitToColumns(const std::string& line, const std::string& short_line, int columns) {
  const auto fits = static_cast<std::size_t>(columns);
  if (columns <= 0 || line.size() <= fits) return line;
  return short_line.substr(0, fits);
}

ProgressReporter::Lines ProgressReporter::Update(const v1::RunStatus& status, double seconds) {
  Lines lines;
  // What a resumed run did before is no news.
  if (first_) {
    eval_step_ = status.eval().step();
    checkpoint_step_ = status.checkpoint_step();
    printed_step_ = status.step().step();
    printed_seconds_ = seconds;
    recoveries_ = status.recoveries();
    first_ = false;
  }
  if (status.recoveries() > recoveries_) {
    recoveries_ = status.recoveries();
    const std::string failure = FailureText(status);
    if (!failure.empty()) lines.events.push_back("failure: " + failure);
    lines.events.push_back("recovery: generation " + std::to_string(status.generation()) +
                           " goes on; " + FormatNumberOf(status.lost_steps(), "step") +
                           " lost in the run so far");
  }
  if (status.state() != state_ || (status.reason() != reason_ && !HasEnded(status.state()))) {
    state_ = status.state();
    reason_ = status.reason();
    if (!HasEnded(state_)) lines.events.push_back(StateLine(status));
  }
  if (status.eval().step() > eval_step_) {
    eval_step_ = status.eval().step();
    lines.events.push_back("step " + std::to_string(eval_step_) + ": validation loss " +
                           Loss(status.eval().valid_loss()));
  }
  if (status.checkpoint_step() != checkpoint_step_) {
    checkpoint_step_ = status.checkpoint_step();
    lines.events.push_back("step " + std::to_string(checkpoint_step_) +
                           ": checkpoint committed: " + status.checkpoint());
  }
  if (status.step().step() > 0 && status.state() == v1::RUN_STATE_RUNNING) {
    rate_.Add(seconds, status.step().step());
    lines.progress = ProgressLine(status, rate_);
    lines.short_progress = ShortProgressLine(status, rate_);
    if (plain_ && IsProgressDue(status, seconds)) {
      printed_step_ = status.step().step();
      printed_seconds_ = seconds;
      lines.events.push_back(lines.progress);
    }
  }
  return lines;
}

bool ProgressReporter::IsProgressDue(const v1::RunStatus& status, double seconds) const {
  const std::int64_t step = status.step().step();
  if (step == printed_step_) return false;
  const double part = kPlainPartOfSteps * static_cast<double>(status.steps_total());
  return printed_step_ == 0 || step < printed_step_ ||
         static_cast<double>(step - printed_step_) >= part ||
         seconds - printed_seconds_ >= std::max(kPlainSeconds, seconds * kPlainPartOfRun);
}

}  // namespace paceline::cli
