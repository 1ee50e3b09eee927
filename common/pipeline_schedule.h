// Pipeline schedules as data: for each stage the list of passes in the order it runs them. The
// worker executes such lists, the planner simulates them, tests check them.
//
// The model is cut into stages * virtual_stages segments; segment g lies on stage g % stages, as
// that stage's segment g / stages. A pass of segment g needs
//   kForward          the forward of segment g - 1 of the same micro-batch
//   kBackward(Input)  the forward of segment g, and the backward of segment g + 1
//   kBackwardWeights  the kBackwardInput of the same segment and micro-batch
// Invariant: on every edge between neighbouring segments the micro-batches are sent in the order
// in which they are received, so a channel needs no tags; and the lists of all stages together
// can always go on (no deadlock), with any positive durations.
// Threading: pure functions.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"

namespace paceline {

enum class Pass {
  kForward,
  kBackward,         // gradients of input and weights in one
  kBackwardInput,    // of the input alone: what the stage before waits for
  kBackwardWeights,  // the rest, any time later
};

struct PipelineAction {
  Pass pass = Pass::kForward;
  int segment = 0;  // of this stage, 0 to virtual_stages - 1
  int micro_batch = 0;

  bool operator==(const PipelineAction&) const = default;
};

struct PipelineShape {
  // "1f1b": Narayanan et al. 2019, arXiv:1806.03377 (PipeDream-Flush's steady state).
  // "interleaved": Narayanan et al. 2021, arXiv:2104.04473, section 2.2; virtual_stages >= 2, and
  //   micro_batches a multiple of stages.
  // "zero-bubble": ZB-H1 of Qi et al. 2023, arXiv:2401.10241: 1f1b's memory, weight gradients
  //   fill the bubble.
  std::string schedule = "1f1b";
  int stages = 1;
  int virtual_stages = 1;
  int micro_batches = 1;
};

// kInvalidArgument: says which of the numbers does not fit the schedule.
absl::Status CheckPipelineShape(const PipelineShape& shape);

// The passes of `stage`, in order. `shape` is valid.
std::vector<PipelineAction> PipelineActions(const PipelineShape& shape, int stage);

// How many micro-batches of one segment are between their forward and the last pass that uses
// its activations, at most: what memory for activations must hold. Micro-batch m may then use slot
// m % slots of its segment.
int ActivationSlots(const std::vector<PipelineAction>& actions);

}  // namespace paceline
