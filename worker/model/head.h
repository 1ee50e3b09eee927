// The head: final norm, output matrix and loss; the last thing of the model's last segment.
// Invariant: ForwardLoss keeps the gradient of the loss's sum in place of the logits, so the
// backward needs no second pass over the softmax.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <span>

#include "worker/model/layer.h"
#include "worker/model/norm.h"

namespace paceline {

class Head {
 public:
  // A tied head multiplies by the embedding's table; else it has lm_head.weight. Its parameters
  // are laid out here; a tied table is set by TieTo, once the embedding is built.
  explicit Head(const LayerContext& context);
  void TieTo(const Weight& table) { output_ = table; }

  // Sum over the tokens of the cross-entropy, in nats. input: (tokens, hidden).
  double ForwardLoss(const float* input, std::span<const std::int32_t> targets);
  // gradient_input: (tokens, hidden), overwritten with that of the input, of loss_scale * loss.
  void BackwardInput(const float* input, float loss_scale, float* gradient_input);
  // Afterwards, of the same loss.
  void BackwardWeights(const float* input, bool accumulate);
  // logits: (tokens, vocab).
  void Logits(const float* input, std::int64_t tokens, float* logits);

 private:
  Stream& stream_;
  const std::int64_t vocab_;
  const std::int64_t hidden_;
  const bool training_;
  Weight output_;  // (vocab, hidden)
  Norm norm_;
  float* const logits_;  // (tokens, vocab)
  std::int32_t* const targets_;
  double* const loss_;
  float* const gradient_normed_;  // (tokens, hidden)
  std::int64_t tokens_ = 0;       // of the latest ForwardLoss
  float loss_scale_ = 1;          // of the latest BackwardInput
};

}  // namespace paceline
