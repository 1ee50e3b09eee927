// What one rank does and keeps for a part of the model, counted from the model's shape: the
// formulas under the planner's predictions of memory and time. docs/planner.md lists them.
// Invariant: parameters are counted as ModelTensors lists them, FLOPs add up to model_shape.h's.
// Threading: pure functions.
#pragma once

#include <cstdint>

#include "common/model_shape.h"
#include "common/parallel_layout.h"
#include "common/planning/machine.h"

namespace paceline::planning {

struct ParameterCounts {
  double replicated = 0;  // held by every data-parallel rank
  double routed = 0;      // routed experts', divided by `expert` ranks

  ParameterCounts& operator+=(const ParameterCounts& other);
};

// Of decoder layers [range.first, range.end), with the embedding or the head where the range has
// them. `expert`: ranks that share the routed experts.
ParameterCounts ParametersOf(const ModelSection& model, const LayerRange& range, int expert);

// One micro-batch on one rank.
struct MicroBatchShape {
  std::int64_t rows = 1;
  std::int64_t sequence = 0;

  double tokens() const { return static_cast<double>(rows) * static_cast<double>(sequence); }
};

// Bytes that the activations of one micro-batch take from forward to backward in `range`.
double SavedBytes(const ModelSection& model, const LayerRange& range, const MicroBatchShape& batch,
                  int expert, const KeptBytes& kept);
// What a micro-batch keeps beside that, from the gradients of the input to those of the weights,
// where a schedule runs them apart.
double BetweenBytes(const ModelSection& model, const LayerRange& range,
                    const MicroBatchShape& batch, int expert, const KeptBytes& kept);
// Bytes of one rank beside that: what a pass needs while it runs, the costliest layer counted.
double ScratchBytes(const ModelSection& model, const LayerRange& range,
                    const MicroBatchShape& batch, int expert, const KeptBytes& kept);

// Seconds of one micro-batch in a range of layers.
struct PassSeconds {
  double forward = 0;
  double backward_input = 0;
  double backward_weights = 0;
  // All-to-all of expert layers that no computation hides.
  double exchange_forward = 0;
  double exchange_backward = 0;

  PassSeconds& operator+=(const PassSeconds& other);
  double total() const {
    return forward + backward_input + backward_weights + exchange_forward + exchange_backward;
  }
};

// machine.rates are known. split_backward: the gradients of weights are another pass and hide no
// exchange.
PassSeconds SecondsOfLayer(const ModelSection& model, std::int64_t layer,
                           const MicroBatchShape& batch, int expert, const Machine& machine,
                           bool split_backward);
// Embedding and head, where `range` has them.
PassSeconds SecondsOfEnds(const ModelSection& model, const LayerRange& range,
                          const MicroBatchShape& batch, const Machine& machine);

// One all-to-all of an expert layer: each rank sends its tokens to the ranks of their experts, or
// gets them back, `bytes` a value.
double ExchangeSeconds(const ModelSection& model, double tokens, int expert, double bytes,
                       const Machine& machine);

}  // namespace paceline::planning
