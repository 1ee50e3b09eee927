// The feed-forward half of a sparse decoder layer: x + shared(n) + sum over the token's experts of
// weight * expert(n), n = norm(x). Every token reaches every expert it chose (dropless): tokens
// are sorted by expert and each expert multiplies its own rows, here or, with expert parallelism,
// on the rank that holds it. The way there and back is hidden by the shared experts' work, and in
// Backward by the gradients of weights.
// Invariant: as Layer's.
// Threading: as Layer's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "worker/kernels/router.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/layer.h"
#include "worker/model/norm.h"
#include "worker/model/routed_experts.h"
#include "worker/model/swiglu_block.h"

namespace paceline {

class MoeLayer : public Layer {
 public:
  // `name`: the decoder layer's, "model.layers.3".
  // balancing_bias: (n_routed_experts), added to the scores where experts are chosen, or null.
  // expert_tokens: (n_routed_experts), to which Forward adds the tokens that each expert got.
  // group: who holds the other experts, where the context has but some.
  MoeLayer(const LayerContext& context, const std::string& name, const float* balancing_bias,
           std::int64_t* expert_tokens, ExpertTransport& group);

  void Forward(const BatchShape& shape, const float* input, float* output) override;
  void BackwardInput(const BatchShape& shape, const float* input, const float* gradient_output,
                     float* gradient_input) override;
  void BackwardWeights(const BatchShape& shape, const float* input, const float* gradient_output,
                       bool accumulate) override;
  void Backward(const BatchShape& shape, const float* input, const float* gradient_output,
                float* gradient_input, bool accumulate) override;

 private:
  void AllocateBuffers(const LayerContext& context);
  // To where the gradients of the experts' inputs are on their way back, and from there on.
  void BackwardThroughExperts(std::int64_t tokens, const float* gradient_output);
  void BackwardFromExperts(std::int64_t tokens, const float* input, const float* gradient_output,
                           float* gradient_input);
  // Of router, experts and shared experts: all that needs no gradient that still travels.
  void BackwardProductWeights(std::int64_t tokens, const float* gradient_output, bool accumulate);
  void RouteForward(std::int64_t tokens);
  void RouteBackward(std::int64_t tokens);

  Stream& stream_;
  const std::int64_t hidden_;
  const std::int64_t expert_count_;
  const std::int64_t top_k_;
  const kernels::RouterOptions router_options_;
  Norm norm_;
  const Weight router_;                     // (experts, hidden)
  std::optional<ExpertExchange> exchange_;  // none: all experts are here
  RoutedExperts experts_;
  std::optional<SwigluBlock> shared_;
  const float* const balancing_bias_;
  std::int64_t* const expert_tokens_;

  // Assignments are tokens * top_k, sorted by expert in the matrices.
  float* scores_ = nullptr;             // (tokens, experts)
  float* weights_ = nullptr;            // (tokens, top_k)
  std::int32_t* expert_ = nullptr;      // (tokens, top_k)
  std::int32_t* offsets_ = nullptr;     // (experts + 1)
  std::int32_t* row_ = nullptr;         // (assignments)
  std::int32_t* assignment_ = nullptr;  // (assignments)
  float* gathered_ = nullptr;           // (assignments, hidden)
  float* expert_out_ = nullptr;         // (assignments, hidden); BackwardInput: its gradient
  // The rows of the experts held here, and their gradients: (exchange's rows, hidden). Without an
  // exchange they are the assignments' matrices themselves.
  const std::int32_t* local_offsets_ = nullptr;
  float* local_in_ = nullptr;
  float* local_out_ = nullptr;
  float* gradient_local_out_ = nullptr;
  float* gradient_local_in_ = nullptr;
  float* gradient_weights_ = nullptr;   // (tokens, top_k)
  float* gradient_logits_ = nullptr;    // (tokens, experts)
  float* gradient_gathered_ = nullptr;  // (assignments, hidden)
  float* gradient_normed_ = nullptr;    // (tokens, hidden)
};

}  // namespace paceline
