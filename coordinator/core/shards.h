// Hands out the training data as windows of steps, and sums up in a digest what was committed.
// Windows are granted ahead, so that the coordinator's absence stops nobody.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/core/state.h"
#include "paceline/v1/training.pb.h"

namespace paceline::core {

// Ahead of the running step lie at least two windows and a quarter of an hour of steps.
inline constexpr double kGrantAheadSeconds = 900;
inline constexpr std::int64_t kMinWindowSteps = 64;
inline constexpr std::int64_t kMaxGrantAheadSteps = 10'000'000;
// Taken until a step was timed.
inline constexpr double kAssumedStepSeconds = 1.0;

// Steps that shall be granted ahead at `step_seconds` a step.
std::int64_t StepsToGrantAhead(double step_seconds);

// Windows to grant now to a run that has completed `step` at `step_seconds` a step, so that
// steps before `until_step` (of a request; 0: none) and the steps ahead are covered. Contiguous
// from run.GrantedUntil() on, up to the run's last step. Empty: enough lies ahead.
std::vector<v1::Window> WindowsToGrant(const Run& run, std::int64_t step, double step_seconds,
                                       std::int64_t until_step);

// What goes back when the run, of which `last_step` was completed, goes on from `step`, not before
// the last committed one: the windows after it, and the steps and tokens lost. False: no window
// lies there.
bool RollBack(const Run& run, std::int64_t step, std::int64_t last_step,
              v1::WindowsRolledBack* out);

// The ledger's digest after the run's windows up to `step` are committed: xxh3-128 chained over
// (digest so far, corpus digest, seed, first and last sample of each window), 32 hex digits.
std::string LedgerDigestAt(const Run& run, std::int64_t step);

}  // namespace paceline::core
