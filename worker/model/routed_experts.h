// The routed experts that a rank holds of one sparse layer: each a SwiGLU over its own rows of one
// matrix, however many it got.
// Invariant: expert e's gate and up lie one after the other, expert after expert, and so do the
// experts' downs, so that each product over all experts is one grouped call.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <string>

#include "worker/model/layer.h"

namespace paceline {

class RoutedExperts {
 public:
  // Parameters: MLP.experts.E.{gate,up,down}_proj.weight, E each of the context's experts.
  RoutedExperts(const LayerContext& context, const std::string& mlp, std::int64_t rows_max);

  // Rows are sorted by expert: the i-th has [offsets[i], offsets[i + 1]), which is read when the
  // stream gets there. Matrices: (rows, hidden).
  void Forward(const std::int32_t* offsets, const float* input, float* output);
  void BackwardInput(const std::int32_t* offsets, const float* gradient_output,
                     float* gradient_input);
  // Afterwards; input and gradient_output as before.
  void BackwardWeights(const std::int32_t* offsets, const float* input,
                       const float* gradient_output, bool accumulate);

 private:
  Stream& stream_;
  const std::int64_t hidden_;
  const std::int64_t intermediate_;  // of one expert
  const std::int32_t experts_;
  Weight gate_up_weights_;  // (experts, 2 * intermediate, hidden)
  Weight down_weights_;     // (experts, hidden, intermediate)
  float* const gate_up_;    // (rows, 2 * intermediate); BackwardInput turns it into its gradient
  float* const activated_;  // (rows, intermediate)
  float* const gradient_activated_;
};

}  // namespace paceline
