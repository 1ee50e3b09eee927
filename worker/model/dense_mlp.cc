#include "worker/model/dense_mlp.h"

#include "worker/kernels/elementwise.h"

namespace paceline {

DenseMlp::DenseMlp(const LayerContext& context, const std::string& name)
    : stream_(context.stream),
      hidden_(context.section.hidden_size),
      block_(context, name + ".mlp", context.section.intermediate_size),
      norm_(context, name + ".post_attention_layernorm.weight"),
      gradient_normed_(context.training
                           ? context.scratch.Allocate<float>(context.tokens_max() * hidden_)
                           : nullptr) {}

void DenseMlp::Forward(const BatchShape& shape, const float* input, float* output) {
  const std::int64_t tokens = shape.tokens();
  norm_.Forward(tokens, input);
  kernels::Copy(stream_, output, input, tokens * hidden_);
  block_.Forward(tokens, norm_.normed(), output);
}

void DenseMlp::Backward(const BatchShape& shape, const float* input, float* gradient,
                        bool accumulate) {
  const std::int64_t tokens = shape.tokens();
  block_.Backward(tokens, norm_.normed(), gradient, gradient_normed_, /*beta=*/0.0f, accumulate);
  norm_.Backward(tokens, input, gradient_normed_, gradient, accumulate);
}

}  // namespace paceline
