#include "common/timeouts.h"

#include <algorithm>

namespace paceline {
namespace {

using std::chrono::milliseconds;

// Where `key` is set it says so, else `otherwise`.
std::string SourceOf(const char* key, std::int64_t value_ms, const char* otherwise) {
  return value_ms > 0 ? std::string("[failure] ") + key : otherwise;
}

}  // namespace

Timeouts TimeoutsFor(std::int64_t budget_ms) {
  const milliseconds budget{budget_ms};
  return {.heartbeat = std::max(budget / 10, milliseconds{20}),
          .lease = budget * 8 / 10,
          .collective = std::max(budget * 24, milliseconds{120'000}),
          .reconnect_max = std::max(budget / 5, milliseconds{50}),
          .rejoin = std::max(budget * 2, milliseconds{5'000}),
          .self_test = std::max(budget * 4, milliseconds{20'000}),
          .startup = std::max(budget * 24, milliseconds{120'000}),
          .checkpoint = std::max(budget * 120, milliseconds{600'000}),
          .shutdown = std::max(budget, milliseconds{1'000}),
          // Workers tell of themselves four times a second.
          .progress = std::max(budget, milliseconds{1'000}),
          .evaluation = std::max(budget * 24, milliseconds{120'000})};
}

Timeouts TimeoutsFor(const FailureSection& failure) {
  Timeouts timeouts = TimeoutsFor(failure.budget_ms);
  const auto set = [](std::int64_t value_ms, milliseconds& limit) {
    if (value_ms > 0) limit = milliseconds{value_ms};
  };
  set(failure.startup_ms, timeouts.startup);
  set(failure.collective_ms, timeouts.collective);
  set(failure.evaluation_ms, timeouts.evaluation);
  set(failure.checkpoint_ms, timeouts.checkpoint);
  return timeouts;
}

std::vector<TimeoutEntry> ExplainTimeouts(const RunFile& run_file) {
  const FailureSection& failure = run_file.failure;
  const Timeouts timeouts = TimeoutsFor(failure);
  constexpr char kFixed[] = "the same for every run";
  constexpr char kTwoMinutes[] = "24 x budget_ms, at least 120 s";
  return {
      {"budget", milliseconds{failure.budget_ms}, 0, "how long a failure may go unnoticed",
       "[failure] budget_ms"},
      {"heartbeat", timeouts.heartbeat, 0, "from one heartbeat of an agent to the next",
       "budget_ms / 10, at least 20 ms"},
      {"lease", timeouts.lease, 0, "a node's silence; then it is lost", "8/10 of budget_ms"},
      {"reconnect", timeouts.reconnect_max, 0,
       "an agent's pause between two attempts to reach the coordinator",
       "budget_ms / 5, at least 50 ms"},
      {"shutdown", timeouts.shutdown, 0,
       "from a generation's end to that of its workers; then they are killed",
       "budget_ms, at least 1 s"},
      {"progress", timeouts.progress, kPatienceSteps,
       "a generation in which no rank's step or operation moves; then the rank at fault is named",
       "budget_ms, at least 1 s"},
      {"collective", timeouts.collective, 0,
       "one collective operation in a worker, for when no coordinator watches",
       SourceOf("collective_ms", failure.collective_ms, kTwoMinutes)},
      {"rejoin", timeouts.rejoin, 0,
       "how long the place of a lost node is kept where no spare is free; then the run goes on "
       "with fewer",
       "2 x budget_ms, at least 5 s"},
      {"self-test", timeouts.self_test, 0, "a node's, before it joins a run that is under way",
       "4 x budget_ms, at least 20 s"},
      {"startup", timeouts.startup, 0,
       "from a generation's plan to its first step; a run that begins waits as long for all of its "
       "nodes",
       SourceOf("startup_ms", failure.startup_ms, kTwoMinutes)},
      {"evaluation", timeouts.evaluation, kPatienceSteps * run_file.train.eval_batches,
       "as progress, while a rank evaluates",
       SourceOf("evaluation_ms", failure.evaluation_ms, kTwoMinutes)},
      {"checkpoint", timeouts.checkpoint, 0,
       "from a rank's snapshot to its durable part; then the checkpoint is given up",
       SourceOf("checkpoint_ms", failure.checkpoint_ms, "120 x budget_ms, at least 600 s")},
      {"connect", kConnectLimit, 0, "one attempt of an agent to reach the coordinator", kFixed},
      {"register", kRegisterLimit, 0, "the coordinator's answer to an agent that has reached it",
       kFixed},
      {"keepalive", 2 * kKeepalive, 0,
       "a connection of an agent to the coordinator or another agent that has vanished", kFixed},
      {"copy", kCopyLimit, 0, "a snapshot's way from one node to another", kFixed},
      {"manifest", kManifestLimit, 0,
       "how long a rank waits for the name of a committed checkpoint's manifest", kFixed},
      {"warm", kWarmSilence, 0, "a warm worker's silence; then it takes no rank's place", kFixed},
      {"idle", kIdleLimit, 0, "workers and snapshots on a node that no run asks for; then they go",
       kFixed},
  };
}

}  // namespace paceline
