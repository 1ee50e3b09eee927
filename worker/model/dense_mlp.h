// The feed-forward half of a dense decoder layer: x + swiglu(norm(x)).
// Invariant: as Layer's.
// Threading: as Layer's.
#pragma once

#include <string>

#include "worker/model/layer.h"
#include "worker/model/norm.h"
#include "worker/model/swiglu_block.h"

namespace paceline {

class DenseMlp : public Layer {
 public:
  // `name`: the decoder layer's, "model.layers.3".
  DenseMlp(const LayerContext& context, const std::string& name);

  void Forward(const BatchShape& shape, const float* input, float* output) override;
  void BackwardInput(const BatchShape& shape, const float* input, const float* gradient_output,
                     float* gradient_input) override;
  void BackwardWeights(const BatchShape& shape, const float* input, const float* gradient_output,
                       bool accumulate) override;

 private:
  Stream& stream_;
  const std::int64_t hidden_;
  SwigluBlock block_;
  Norm norm_;
  float* const gradient_normed_;  // (tokens, hidden)
};

}  // namespace paceline
