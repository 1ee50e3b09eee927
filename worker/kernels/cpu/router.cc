#include "worker/kernels/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

// Keeps a zero sum of scores from dividing; the value is that of the models after which the gate
// is written.
constexpr float kSumFloor = 1e-20f;

PACELINE_VECTOR_CLONES
void SigmoidScores(float* scores, const float* logits, std::int64_t count) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) scores[i] = Sigmoid(logits[i]);
}

PACELINE_VECTOR_CLONES
void SoftmaxScores(float* scores, const float* logits, std::int64_t tokens, std::int64_t experts) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* x = logits + t * experts;
    float* y = scores + t * experts;
    const float maximum = cpu::Maximum(x, experts);
    const float inverse_sum = 1.0f / cpu::StoreExp(y, x, experts, maximum);
    for (std::int64_t e = 0; e < experts; ++e) y[e] *= inverse_sum;
  }
}

// The top_k best of `scores` + `bias`, best first, by insertion into a short sorted list. Experts
// come in rising order and displace only what is strictly worse, so ties go to the lower one.
void ChooseExperts(std::int32_t* chosen, const float* scores, const float* bias,
                   const RouterOptions& options) {
  float best[kRouterTopKMax];
  std::int32_t count = 0;
  for (std::int32_t e = 0; e < options.experts; ++e) {
    float value = bias == nullptr ? scores[e] : scores[e] + bias[e];
    if (std::isnan(value)) value = std::numeric_limits<float>::infinity();
    if (count == options.top_k && !(value > best[count - 1])) continue;
    std::int32_t place = count < options.top_k ? count++ : count - 1;
    for (; place > 0 && value > best[place - 1]; --place) {
      best[place] = best[place - 1];
      chosen[place] = chosen[place - 1];
    }
    best[place] = value;
    chosen[place] = e;
  }
}

void WeighExperts(float* weights, const std::int32_t* chosen, const float* scores,
                  const RouterOptions& options) {
  float sum = 0.0f;
  for (std::int32_t k = 0; k < options.top_k; ++k) sum += scores[chosen[k]];
  const float factor = options.norm_topk_prob ? options.routed_scaling_factor / (sum + kSumFloor)
                                              : options.routed_scaling_factor;
  for (std::int32_t k = 0; k < options.top_k; ++k) weights[k] = scores[chosen[k]] * factor;
}

// dscores of one token's chosen experts, in place of their dweights.
void WeightGradient(float* dscores, const float* dweights, const std::int32_t* chosen,
                    const float* scores, const RouterOptions& options) {
  const std::int32_t top_k = options.top_k;
  const float scaling = options.routed_scaling_factor;
  if (!options.norm_topk_prob) {
    for (std::int32_t k = 0; k < top_k; ++k) dscores[k] = dweights[k] * scaling;
    return;
  }
  float sum = 0.0f;
  float dot = 0.0f;
  for (std::int32_t k = 0; k < top_k; ++k) {
    sum += scores[chosen[k]];
    dot += dweights[k] * scores[chosen[k]];
  }
  const float inverse = 1.0f / (sum + kSumFloor);
  for (std::int32_t k = 0; k < top_k; ++k) {
    dscores[k] = scaling * inverse * (dweights[k] - dot * inverse);
  }
}

void TokenBackward(float* dlogits, const float* dweights, const float* scores,
                   const std::int32_t* chosen, const RouterOptions& options) {
  float dscores[kRouterTopKMax];
  WeightGradient(dscores, dweights, chosen, scores, options);
  const std::int32_t top_k = options.top_k;
  if (options.score == GateScore::kSigmoid) {
    std::fill_n(dlogits, options.experts, 0.0f);
    for (std::int32_t k = 0; k < top_k; ++k) {
      const float s = scores[chosen[k]];
      dlogits[chosen[k]] = dscores[k] * s * (1.0f - s);
    }
    return;
  }
  float dot = 0.0f;
  for (std::int32_t k = 0; k < top_k; ++k) dot += dscores[k] * scores[chosen[k]];
  for (std::int32_t e = 0; e < options.experts; ++e) dlogits[e] = -scores[e] * dot;
  for (std::int32_t k = 0; k < top_k; ++k) {
    dlogits[chosen[k]] = scores[chosen[k]] * (dscores[k] - dot);
  }
}

void CheckOptions(const RouterOptions& options) {
  PACELINE_CHECK(options.top_k >= 1 && options.top_k <= options.experts &&
                 options.top_k <= kRouterTopKMax);
}

}  // namespace

void RouterForward(Stream& stream, float* scores, std::int32_t* expert, float* weights,
                   const float* logits, const float* bias, std::int64_t tokens,
                   const RouterOptions& options) {
  CheckOptions(options);
  stream.Enqueue([=] {
    if (options.score == GateScore::kSigmoid) {
      SigmoidScores(scores, logits, tokens * options.experts);
    } else {
      SoftmaxScores(scores, logits, tokens, options.experts);
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::int32_t* chosen = expert + t * options.top_k;
      const float* row = scores + t * options.experts;
      ChooseExperts(chosen, row, bias, options);
      WeighExperts(weights + t * options.top_k, chosen, row, options);
    }
  });
}

void RouterBackward(Stream& stream, float* dlogits, const float* dweights, const float* scores,
                    const std::int32_t* expert, std::int64_t tokens, const RouterOptions& options) {
  CheckOptions(options);
  stream.Enqueue([=] {
    for (std::int64_t t = 0; t < tokens; ++t) {
      TokenBackward(dlogits + t * options.experts, dweights + t * options.top_k,
                    scores + t * options.experts, expert + t * options.top_k, options);
    }
  });
}

}  // namespace paceline::kernels
