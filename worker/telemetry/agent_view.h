// What an agent shows of itself and of its ranks at one moment.
// Threading: plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "paceline/v1/training.pb.h"

namespace paceline {

struct RankView {
  v1::GenerationKey key;
  std::int64_t steps_done = 0;       // in this generation
  std::int64_t last_step_at_ms = 0;  // wall clock; 0: none yet
  v1::RankProgress progress;
  SteadyTime heard_at;                 // when `progress` came
  std::optional<v1::StepRecord> step;  // of rank 0
  std::optional<v1::EvalRecord> eval;
};

// Since the agent's start.
struct AgentCounters {
  std::int64_t registrations = 0;
  std::int64_t stale_messages = 0;  // of a lower epoch, refused
  std::int64_t worker_starts = 0;
  std::int64_t worker_reuses = 0;
  std::int64_t warm_uses = 0;         // warm workers that got a rank
  std::int64_t workers_finished = 0;  // ended cleanly, their last rank having finished
  std::int64_t workers_ended = 0;     // because their generation had ended
  std::int64_t workers_failed = 0;    // otherwise
  std::int64_t warm_ended = 0;        // without ever having had a rank
  std::int64_t record_errors = 0;     // lines that could not be written to a run's records
  std::int64_t snapshot_copies = 0;   // of other nodes' snapshots
  std::int64_t snapshot_copy_bytes = 0;
  std::int64_t snapshot_copy_failures = 0;
  std::int64_t snapshot_copied_at_ms = 0;  // the last one, Unix time; 0: none
  std::int64_t snapshot_fetches = 0;       // of states that ranks here began from
  std::int64_t snapshot_fetch_bytes = 0;
  std::int64_t snapshot_fetch_failures = 0;
};

struct AgentView {
  std::string node;
  int slots = 0;
  int workers = 0;
  int warm_workers = 0;  // of them, ready for a rank
  bool registered = false;
  std::uint64_t node_id = 0;
  std::uint64_t epoch = 0;
  AgentCounters counters;
  std::vector<RankView> ranks;
};

}  // namespace paceline
