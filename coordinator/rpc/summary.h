// summary.json: what a run came to.
// Invariant: steps, tokens, loss and validation loss are those of the final lineage, which ends at
// the last committed checkpoint; what was trained beside it is counted as lost, and nowhere else.
// Threading: pure functions; ReadLineageRecords reads files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "paceline/v1/coordinator.pb.h"

namespace paceline {

// What the run folder's steps.jsonl and evals.jsonl tell of the lineage that ends at a step. The
// coordinator itself hears of the latest step only, once a heartbeat.
struct LineageRecords {
  std::optional<double> loss;        // of that step
  std::optional<double> valid_loss;  // the latest up to it
  std::int64_t steps_trained = 0;    // over all generations; 0: the records are not readable here
  std::int64_t tokens_per_step = 0;
};

LineageRecords ReadLineageRecords(const std::string& run_dir, std::int64_t step);

// Content of RUN_DIR/summary.json. What a run does not have (a loss before its first step, a
// validation loss without held-out text, a cost per token before its first token) is null.
// lost_steps: as many as were trained beside the lineage, by the records where there are any, by
// the heartbeats otherwise.
// tokens_per_second: tokens that the ranks of the last generation processed over the time the
// slowest of them spent in steps; evaluations and checkpoints beside the steps do not count.
std::string SummaryJson(const v1::RunStatus& status, const LineageRecords& records);

}  // namespace paceline
