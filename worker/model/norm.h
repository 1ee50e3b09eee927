// The RMSNorm at the head of a layer, with what its backward needs.
// Invariant: normed() is valid from Forward to the layer's BackwardWeights.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <string>

#include "worker/model/layer.h"

namespace paceline {

class Norm {
 public:
  Norm(const LayerContext& context, const std::string& name);

  // normed() = norm(input).
  void Forward(std::int64_t tokens, const float* input);
  // gradient_input = that of the input through the norm, given that of normed(), plus
  // gradient_residual, what reaches the input past the norm (null for nothing).
  void BackwardInput(std::int64_t tokens, const float* input, const float* gradient_normed,
                     const float* gradient_residual, float* gradient_input);
  void BackwardWeights(std::int64_t tokens, const float* input, const float* gradient_normed,
                       bool accumulate);

  const float* normed() const { return normed_; }

 private:
  Stream& stream_;
  const std::int64_t hidden_;
  const float eps_;
  const Weight weight_;
  float* const normed_;  // (tokens, hidden)
  float* const rstd_;    // (tokens)
};

}  // namespace paceline
