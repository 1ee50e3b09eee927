#include "worker/model/swiglu_block.h"

#include "worker/kernels/gemm.h"
#include "worker/kernels/swiglu.h"

namespace paceline {

SwigluBlock::SwigluBlock(const LayerContext& context, const std::string& prefix,
                         std::int64_t intermediate)
    : stream_(context.stream),
      hidden_(context.section.hidden_size),
      intermediate_(intermediate),
      gate_(context.parameters.Add(prefix + ".gate_proj.weight", {intermediate, hidden_})),
      up_(context.parameters.Add(prefix + ".up_proj.weight", {intermediate, hidden_})),
      down_(context.parameters.Add(prefix + ".down_proj.weight", {hidden_, intermediate})),
      gate_up_(context.saved.Allocate<float>(context.tokens_max() * 2 * intermediate)),
      activated_(context.saved.Allocate<float>(context.tokens_max() * intermediate)),
      gradient_activated_(context.training
                              ? context.scratch.Allocate<float>(context.tokens_max() * intermediate)
                              : nullptr) {}

void SwigluBlock::ForwardGateUp(std::int64_t tokens, const float* input) {
  kernels::Gemm(stream_, gate_up_, input, gate_.value, tokens, 2 * intermediate_, hidden_,
                {.transpose_b = true});
  kernels::SwigluForward(stream_, activated_, gate_up_, gate_up_ + intermediate_, tokens,
                         intermediate_, 2 * intermediate_);
}

void SwigluBlock::ForwardDown(std::int64_t tokens, float* output) {
  kernels::Gemm(stream_, output, activated_, down_.value, tokens, hidden_, intermediate_,
                {.transpose_b = true, .beta = 1.0f});
}

void SwigluBlock::BackwardDown(std::int64_t tokens, const float* gradient_output) {
  kernels::Gemm(stream_, gradient_activated_, gradient_output, down_.value, tokens, intermediate_,
                hidden_);
  kernels::SwigluBackward(stream_, gate_up_, gate_up_ + intermediate_, gradient_activated_,
                          gate_up_, gate_up_ + intermediate_, tokens, intermediate_,
                          2 * intermediate_);
}

void SwigluBlock::BackwardGateUp(std::int64_t tokens, float* gradient_input, float beta) {
  kernels::Gemm(stream_, gradient_input, gate_up_, gate_.value, tokens, hidden_, 2 * intermediate_,
                {.beta = beta});
}

void SwigluBlock::BackwardWeights(std::int64_t tokens, const float* input,
                                  const float* gradient_output, bool accumulate) {
  const kernels::GemmOptions options{.transpose_a = true, .beta = accumulate ? 1.0f : 0.0f};
  kernels::Gemm(stream_, down_.gradient, gradient_output, activated_, hidden_, intermediate_,
                tokens, options);
  kernels::Gemm(stream_, gate_.gradient, gate_up_, input, 2 * intermediate_, hidden_, tokens,
                options);
}

}  // namespace paceline
