#include "worker/model/norm.h"

#include "worker/kernels/rmsnorm.h"

namespace paceline {

Norm::Norm(const LayerContext& context, const std::string& name)
    : stream_(context.stream),
      hidden_(context.section.hidden_size),
      eps_(static_cast<float>(context.section.rms_norm_eps)),
      weight_(context.parameters.Add(name, {hidden_})),
      normed_(context.saved.Allocate<float>(context.tokens_max() * hidden_)),
      rstd_(context.saved.Allocate<float>(context.tokens_max())) {}

void Norm::Forward(std::int64_t tokens, const float* input) {
  kernels::RmsNormForward(stream_, normed_, rstd_, input, weight_.value, tokens, hidden_, eps_);
}

void Norm::BackwardInput(std::int64_t tokens, const float* input, const float* gradient_normed,
                         const float* gradient_residual, float* gradient_input) {
  kernels::RmsNormBackward(stream_, gradient_input, gradient_normed, input, weight_.value, rstd_,
                           gradient_residual, tokens, hidden_);
}

void Norm::BackwardWeights(std::int64_t tokens, const float* input, const float* gradient_normed,
                           bool accumulate) {
  kernels::RmsNormWeightGradient(stream_, weight_.gradient, gradient_normed, input, rstd_, tokens,
                                 hidden_, accumulate);
}

}  // namespace paceline
