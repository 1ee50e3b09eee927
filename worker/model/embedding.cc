#include "worker/model/embedding.h"

#include <algorithm>

#include "worker/kernels/embedding.h"

namespace paceline {

Embedding::Embedding(const LayerContext& context)
    : stream_(context.stream),
      vocab_(context.section.vocab_size),
      hidden_(context.section.hidden_size),
      table_(context.parameters.Add("model.embed_tokens.weight", {vocab_, hidden_})),
      tokens_(context.saved.Allocate<std::int32_t>(context.tokens_max())) {}

void Embedding::Forward(std::span<const std::int32_t> tokens, float* output) {
  std::copy(tokens.begin(), tokens.end(), tokens_);
  count_ = static_cast<std::int64_t>(tokens.size());
  kernels::EmbeddingForward(stream_, output, table_.value, tokens_, count_, hidden_);
}

void Embedding::Backward(const float* gradient, bool accumulate) {
  kernels::EmbeddingBackward(stream_, table_.gradient, gradient, tokens_, count_, vocab_, hidden_,
                             accumulate);
}

}  // namespace paceline
