// Every time-out of a run, derived from one number, [failure] budget_ms, but for those that the
// run file sets itself and those of single calls, the same for every run. The budget bounds
// liveness; progress is bounded by it and the steps' own time; start-up, collectives, evaluation
// and checkpoints have limits of their own.
// Invariant: heartbeat < lease <= budget, and every limit on work exceeds the budget.
// Threading: plain values.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "common/run_file.h"

namespace paceline {

struct Timeouts {
  std::chrono::milliseconds heartbeat;      // between two of an agent
  std::chrono::milliseconds lease;          // a node silent for longer is lost
  std::chrono::milliseconds collective;     // one collective operation, from entry
  std::chrono::milliseconds reconnect_max;  // longest pause between attempts
  std::chrono::milliseconds rejoin;         // a lost node is waited for; then the run shrinks
  std::chrono::milliseconds self_test;      // a node's, before it joins a run under way
  std::chrono::milliseconds startup;        // from planning to the generation's first step
  std::chrono::milliseconds checkpoint;     // from a rank's snapshot to its durable part
  std::chrono::milliseconds shutdown;       // from EndGeneration to the workers' end
  std::chrono::milliseconds progress;       // + kPatienceSteps median steps: without any movement
  std::chrono::milliseconds evaluation;     // + as many for each batch: likewise, in one
};

// What progress and evaluation add to their limits, in median steps: a step may take up to that
// much longer than it used to.
inline constexpr std::int64_t kPatienceSteps = 3;

// Limits of single calls and of what nobody asks for, which follow no budget: what they end is
// tried again, or was not needed.
inline constexpr std::chrono::milliseconds kConnectLimit{2'000};    // an agent's, to a coordinator
inline constexpr std::chrono::milliseconds kRegisterLimit{10'000};  // a coordinator's answer to it
// A machine that vanishes sends no farewell: a gRPC connection is closed after twice this silence.
inline constexpr std::chrono::milliseconds kKeepalive{5'000};
inline constexpr std::chrono::milliseconds kCopyLimit{600'000};     // a snapshot's, between nodes
inline constexpr std::chrono::milliseconds kManifestLimit{60'000};  // until a manifest has its name
// Warm workers say that they live four times a second: one that is silent for longer may be
// stopped, and a generation would wait for it.
inline constexpr std::chrono::milliseconds kWarmSilence{1'000};
// Workers that no generation takes up, and snapshots of a run of which nothing else is on the node:
// until then they hold what the run may go on from, if its coordinator was lost.
inline constexpr std::chrono::hours kIdleLimit{1};

Timeouts TimeoutsFor(std::int64_t budget_ms);
// With what the run file sets itself.
Timeouts TimeoutsFor(const FailureSection& failure);

// One time-out as a user is told of it.
struct TimeoutEntry {
  std::string name;
  std::chrono::milliseconds limit;
  std::int64_t median_steps = 0;  // that are added to it
  std::string bounds;             // what
  std::string source;             // where it comes from
};
// In the order in which they are told.
std::vector<TimeoutEntry> ExplainTimeouts(const RunFile& run_file);

}  // namespace paceline
