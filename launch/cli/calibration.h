// Measures the rates of this machine that the planner's cost model needs, by running the worker's
// kernels and a small model's layers for a few seconds.
// Invariant: what is measured is another shape than the run's: fewer layers, other sequences.
// Threading: the caller's thread computes, as a rank does; a helper thread answers messages.
#pragma once

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

// Rates of one rank that has a core of its own. kInvalidArgument: the model is too large to be
// measured in seconds; kUnavailable: loopback messages fail.
absl::StatusOr<planning::CostRates> Calibrate(const CalibrationShape& shape);

}  // namespace paceline::cli
