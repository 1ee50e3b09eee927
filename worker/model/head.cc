#include "worker/model/head.h"

#include <algorithm>
#include <limits>

#include "worker/kernels/cross_entropy.h"
#include "worker/kernels/gemm.h"

namespace paceline {
namespace {

Weight OwnOutput(const LayerContext& context) {
  if (context.section.tie_word_embeddings) return {};
  return context.parameters.Add("lm_head.weight",
                                {context.section.vocab_size, context.section.hidden_size});
}

}  // namespace

Head::Head(const LayerContext& context)
    : stream_(context.stream),
      vocab_(context.section.vocab_size),
      hidden_(context.section.hidden_size),
      training_(context.training),
      output_(OwnOutput(context)),
      norm_(context, "model.norm.weight"),
      logits_(context.saved.Allocate<float>(context.tokens_max() * vocab_)),
      targets_(context.saved.Allocate<std::int32_t>(context.tokens_max())),
      loss_(context.saved.Allocate<double>(1)),
      gradient_normed_(context.training
                           ? context.between.Allocate<float>(context.tokens_max() * hidden_)
                           : nullptr) {}

double Head::ForwardLoss(const float* input, std::span<const std::int32_t> targets) {
  tokens_ = static_cast<std::int64_t>(targets.size());
  std::copy(targets.begin(), targets.end(), targets_);
  Logits(input, tokens_, logits_);
  stream_.Enqueue([loss = loss_] { *loss = 0; });
  if (training_) {
    kernels::CrossEntropyForwardBackward(stream_, loss_, logits_, targets_, tokens_, vocab_,
                                         /*scale=*/1.0f);
  } else {
    kernels::CrossEntropyForward(stream_, loss_, logits_, targets_, tokens_, vocab_);
  }
  // A failed stream has computed nothing; NaN is how a caller of a number learns of it.
  if (!stream_.Synchronize().ok()) return std::numeric_limits<double>::quiet_NaN();
  return *loss_;
}

void Head::BackwardInput(const float* input, float loss_scale, float* gradient_input) {
  loss_scale_ = loss_scale;
  kernels::Gemm(stream_, gradient_normed_, logits_, output_.value, tokens_, hidden_, vocab_,
                {.alpha = loss_scale});
  norm_.BackwardInput(tokens_, input, gradient_normed_, /*gradient_residual=*/nullptr,
                      gradient_input);
}

void Head::BackwardWeights(const float* input, bool accumulate) {
  kernels::Gemm(stream_, output_.gradient, logits_, norm_.normed(), vocab_, hidden_, tokens_,
                {.transpose_a = true, .alpha = loss_scale_, .beta = accumulate ? 1.0f : 0.0f});
  norm_.BackwardWeights(tokens_, input, gradient_normed_, accumulate);
}

void Head::Logits(const float* input, std::int64_t tokens, float* logits) {
  norm_.Forward(tokens, input);
  kernels::Gemm(stream_, logits, norm_.normed(), output_.value, tokens, vocab_, hidden_,
                {.transpose_b = true});
}

}  // namespace paceline
