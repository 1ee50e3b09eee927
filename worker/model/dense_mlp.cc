#include "worker/model/dense_mlp.h"

#include "worker/kernels/elementwise.h"

namespace paceline {

DenseMlp::DenseMlp(const LayerContext& context, const std::string& name)
    : stream_(context.stream),
      hidden_(context.section.hidden_size),
      block_(context, name + ".mlp", context.section.intermediate_size),
      norm_(context, name + ".post_attention_layernorm.weight"),
      gradient_normed_(context.training
                           ? context.between.Allocate<float>(context.tokens_max() * hidden_)
                           : nullptr) {}

void DenseMlp::Forward(const BatchShape& shape, const float* input, float* output) {
  const std::int64_t tokens = shape.tokens();
  norm_.Forward(tokens, input);
  kernels::Copy(stream_, output, input, tokens * hidden_);
  block_.ForwardGateUp(tokens, norm_.normed());
  block_.ForwardDown(tokens, output);
}

void DenseMlp::BackwardInput(const BatchShape& shape, const float* input,
                             const float* gradient_output, float* gradient_input) {
  const std::int64_t tokens = shape.tokens();
  block_.BackwardDown(tokens, gradient_output);
  block_.BackwardGateUp(tokens, gradient_normed_, /*beta=*/0.0f);
  norm_.BackwardInput(tokens, input, gradient_normed_, gradient_output, gradient_input);
}

void DenseMlp::BackwardWeights(const BatchShape& shape, const float* input,
                               const float* gradient_output, bool accumulate) {
  const std::int64_t tokens = shape.tokens();
  block_.BackwardWeights(tokens, norm_.normed(), gradient_output, accumulate);
  norm_.BackwardWeights(tokens, input, gradient_normed_, accumulate);
}

}  // namespace paceline
