// The gate of a mixture of experts: scores, the choice of experts, and their weights.
// Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2 (experts are chosen by score plus
// balancing bias, weighted by the score without it), and transformers' Glm4MoeTopkRouter
// (normalisation by the chosen scores' sum + 1e-20, then routed_scaling_factor).
// Invariant: the choice is a function of one token's scores and the bias; ties go to the lower
// expert; a NaN score ranks highest, so that it reaches the loss instead of vanishing.
// The chosen experts of a token are distinct and in range for every input.
// Threading: a call belongs to the stream's thread.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

enum class GateScore : std::int32_t { kSigmoid, kSoftmax };

struct RouterOptions {
  std::int32_t experts = 0;
  std::int32_t top_k = 0;  // 1 to experts, at most kRouterTopKMax
  GateScore score = GateScore::kSigmoid;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1.0f;
};

inline constexpr std::int32_t kRouterTopKMax = 64;

// scores[t,:] = sigmoid or softmax of logits[t,:];  expert[t,k]: the top_k experts by
// scores[t,e] + bias[e], best first;  w[t,k] = scores[t,expert[t,k]];
// weights[t,k] = routed_scaling_factor * (norm_topk_prob ? w[t,k] / (sum_k w[t,k] + 1e-20) :
// w[t,k]) scores, logits: (tokens, experts), may be the same; expert, weights: (tokens, top_k);
// bias: (experts), or null for none.
void RouterForward(Stream& stream, float* scores, std::int32_t* expert, float* weights,
                   const float* logits, const float* bias, std::int64_t tokens,
                   const RouterOptions& options);

// dlogits: (tokens, experts), overwritten; from dweights (tokens, top_k) and what forward left.
// The choice itself, and so the bias, has no gradient.
void RouterBackward(Stream& stream, float* dlogits, const float* dweights, const float* scores,
                    const std::int32_t* expert, std::int64_t tokens, const RouterOptions& options);

}  // namespace paceline::kernels
