// Measures the rates of this machine that the planner's cost model needs, by running the worker's
// kernels and a small model's layers for a few seconds.
// Invariant: what is measured is another shape than the run's: fewer layers, other sequences.
// Threading: threads of its own compute, as ranks do.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "common/planning/machine.h"
#include "common/planning/work.h"
#include "common/run_file.h"

namespace paceline::cli {

struct CalibrationShape {
  ModelSection model;
  planning::MicroBatchShape batch;
};

// The run's widths, at most one dense and one sparse layer, half its sequence length and twice
// its rows; fewer tokens where the model is large.
CalibrationShape CalibrationShapeFor(const RunFile& run_file);

// Rates of one of `ranks` (fewer where the model is large) that compute at once, and of messages
// between two. on_rank(rank), unless it is null, is called on each rank's thread first, to bind it
// to a core; for messages with 0 and 1.
// kInvalidArgument: the model is too large to be measured in seconds. kUnavailable,
// kDeadlineExceeded: messages fail.
absl::StatusOr<planning::CostRates> Calibrate(
    const CalibrationShape& shape, int ranks,
    const std::function<void(int rank)>& on_rank = nullptr);

}  // namespace paceline::cli
