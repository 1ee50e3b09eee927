// What a layout will take on a machine: memory of each stage's ranks, and the step's time.
// Invariant: a layout that CheckLayout accepts has a prediction.
// Threading: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/parallel_layout.h"
#include "common/planning/machine.h"
#include "common/planning/simulation.h"
#include "common/run_file.h"
#include "common/status.h"

namespace paceline::planning {

// A layout and the micro-batch it runs with.
struct Candidate {
  ParallelLayout layout;
  std::int64_t micro_batch_size = 1;
};
// "pipeline 4 (1f1b) x data 16, expert 8, zero 1, micro-batch 1".
std::string TextOf(const Candidate& candidate);
std::int64_t MicroBatches(const RunFile& run_file, const Candidate& candidate);

// Bytes of a rank of one stage.
struct RankMemory {
  double weights = 0;
  double gradients = 0;
  double accumulators = 0;  // float64 sums, with reduction = "exact"
  double moments = 0;
  double activations = 0;  // of all micro-batches in flight
  double scratch = 0;
  double checkpoint_copy = 0;
  int slots = 1;  // micro-batches in flight

  double total() const {
    return weights + gradients + accumulators + moments + activations + scratch + checkpoint_copy;
  }
};
RankMemory MemoryOf(const RunFile& run_file, const Candidate& candidate, const Machine& machine,
                    int stage);
std::vector<RankMemory> MemoryOfStages(const RunFile& run_file, const Candidate& candidate,
                                       const Machine& machine);

// Which of them is the fullest, any stage of them; one whose total is NaN counts as that. There is
// at least one.
std::size_t FullestOf(const std::vector<RankMemory>& stages);

// Weights and moments, written by all ranks together.
double CheckpointBytes(const RunFile& run_file);

// Durations of every stage; machine.rates are known.
std::vector<StageTimes> TimesOfStages(const RunFile& run_file, const Candidate& candidate,
                                      const Machine& machine);
// Long steps are simulated in part, and without timeline: a filled pipeline repeats itself.
StepSimulation Predict(const RunFile& run_file, const Candidate& candidate, const Machine& machine,
                       bool with_timeline = false);
// About what Predict says, from the schedule's formula for the bubble, in a fraction of the time.
double EstimateStepSeconds(const RunFile& run_file, const Candidate& candidate,
                           const std::vector<StageTimes>& stages);

// Whether the numbers fit each other: kInvalidArgument says what does not.
absl::Status CheckLayout(const RunFile& run_file, const Candidate& candidate,
                         const Machine& machine);
// Whether every rank's memory suffices: kOutOfRange names the stage and what fills it.
absl::Status CheckMemory(const RunFile& run_file, const Candidate& candidate,
                         const Machine& machine);

}  // namespace paceline::planning
