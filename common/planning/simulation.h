// A discrete-event simulation of one training step: every stage of a pipeline runs its list of
// passes (pipeline_schedule.h), hands values to its neighbours, reduces gradients while the last
// passes run, and updates its weights. One pipeline stands for all copies of it, each of its stages
// for the slowest of that stage's copies.
// Invariant: for every stage the parts add up to the step.
// Threading: pure functions.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/pipeline_schedule.h"
#include "common/planning/machine.h"
#include "common/planning/work.h"

namespace paceline::planning {

// One stage's durations.
struct StageTimes {
  std::vector<PassSeconds> segments;   // of one micro-batch, by the stage's segment
  std::vector<double> reduction;       // of a segment's gradients, all micro-batches' sum
  std::vector<int> reduction_buckets;  // that it is cut into: the layers of the segment
  double send_forward = 0;             // activations to the next stage
  double send_backward = 0;            // gradients to the stage before
  double optimizer = 0;
  double gather = 0;  // of updated weights; runs behind the optimizer, bucket by bucket
  Spread spread;
  int copies = 1;  // of the stage, which wait for each other: a step goes as its slowest
};

struct StageParts {
  double compute = 0;    // passes, of the slowest copy
  double exchange = 0;   // all-to-all that no computation hides
  double send = 0;       // sending and receiving that hold the stage up
  double bubble = 0;     // waiting for other stages
  double gradients = 0;  // reduction after the last pass
  double optimizer = 0;  // and what is left of the gather

  double total() const { return compute + exchange + send + bubble + gradients + optimizer; }
  void Add(const StageParts& other, double share);
};

struct TimedPass {
  PipelineAction action;
  double start = 0;
  double end = 0;
};

struct StepSimulation {
  double seconds = 0;
  std::vector<StageParts> stages;
  std::vector<std::vector<TimedPass>> timeline;  // by stage, where it was asked for
};

// `overlap`: the share of a transfer during which both its ends go on. stages.size() is
// shape.stages; `shape` is valid. Where passes have a spread, the mean of steps whose passes and
// speeds are drawn (log-normal, from fixed seeds); the timeline is of passes without one. `draws`:
// of how many such steps; none: DrawsOf(shape).
StepSimulation SimulateStep(const PipelineShape& shape, const std::vector<StageTimes>& stages,
                            double overlap, bool with_timeline = false,
                            std::optional<int> draws = std::nullopt);

// As many as keep the passes of all draws, and so the time they take, within a bound; fewer for a
// step of more passes. `shape` is valid.
int DrawsOf(const PipelineShape& shape);

// The mean over the stages, which adds up to the step too.
StageParts MeanOf(const std::vector<StageParts>& stages);

// The schedule as text, a line for each stage: a digit is a forward of that micro-batch (its last
// digit), a letter a backward ("a" of micro-batch 0), "w" weight gradients apart, "." waiting.
// Empty where it does not fit `columns`.
std::string TimelinePicture(const StepSimulation& simulation, int columns);

}  // namespace paceline::planning
