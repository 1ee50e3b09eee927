// The RMSNorm at the head of a layer, with what its backward needs.
// Invariant: normed() is valid from Forward to the layer's Backward.
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
  // gradient += that of norm(input), given that of normed(): the residual's gradient stays in.
  void Backward(std::int64_t tokens, const float* input, const float* gradient_normed,
                float* gradient, bool accumulate);
  // gradient = that of norm(input), in place from that of normed(): where no residual passes by.
  void BackwardWithoutResidual(std::int64_t tokens, const float* input, float* gradient,
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
