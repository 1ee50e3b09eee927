// down(silu(gate x) * up x), gate and up multiplied as one matrix: the feed-forward part of a
// dense layer, and the shared experts of a sparse one.
// Invariant: gate's and up's weights lie one after the other in the flat arrays.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <string>

#include "worker/model/layer.h"

namespace paceline {

class SwigluBlock {
 public:
  // Parameters: PREFIX.{gate,up,down}_proj.weight.
  SwigluBlock(const LayerContext& context, const std::string& prefix, std::int64_t intermediate);

  // output += block(input), in two halves, so that another's work may stand between them.
  // input, output: (tokens, hidden).
  void ForwardGateUp(std::int64_t tokens, const float* input);
  void ForwardDown(std::int64_t tokens, float* output);
  // gradient_input = (that of input) + beta * gradient_input, given that of the output; in two
  // halves again.
  void BackwardDown(std::int64_t tokens, const float* gradient_output);
  void BackwardGateUp(std::int64_t tokens, float* gradient_input, float beta);
  // Afterwards; input and gradient_output as before.
  void BackwardWeights(std::int64_t tokens, const float* input, const float* gradient_output,
                       bool accumulate);

 private:
  Stream& stream_;
  const std::int64_t hidden_;
  const std::int64_t intermediate_;
  const Weight gate_;  // (2 * intermediate, hidden) with up
  const Weight up_;
  const Weight down_;       // (hidden, intermediate)
  float* const gate_up_;    // (tokens, 2 * intermediate); BackwardDown turns it into its gradient
  float* const activated_;  // (tokens, intermediate)
  float* const gradient_activated_;
};

}  // namespace paceline
