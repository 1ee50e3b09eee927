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

  // output += block(input).  input, output: (tokens, hidden).
  void Forward(std::int64_t tokens, const float* input, float* output);
  // gradient_input = (that of input) + beta * gradient_input, given that of the output.
  void Backward(std::int64_t tokens, const float* input, const float* gradient_output,
                float* gradient_input, float beta, bool accumulate);

 private:
  Stream& stream_;
  const std::int64_t hidden_;
  const std::int64_t intermediate_;
  const Weight gate_;  // (2 * intermediate, hidden) with up
  const Weight up_;
  const Weight down_;       // (hidden, intermediate)
  float* const gate_up_;    // (tokens, 2 * intermediate); backward turns it into its gradient
  float* const activated_;  // (tokens, intermediate)
  float* const gradient_activated_;
};

}  // namespace paceline
