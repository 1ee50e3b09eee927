// The attention half of a decoder layer: x + o(attention(rope(q, k), v)), q, k, v of norm(x),
// multiplied as one matrix.
// Invariant: q's, k's and v's weights lie one after the other in the flat arrays.
// Threading: as Layer's.
#pragma once

#include <string>

#include "worker/kernels/attention.h"
#include "worker/model/layer.h"
#include "worker/model/norm.h"

namespace paceline {

// Cosines and sines of every position, shared by the layers: (positions, head_dim / 2) each.
struct RopeTable {
  const float* cosines = nullptr;
  const float* sines = nullptr;
};

class AttentionLayer : public Layer {
 public:
  // `name`: the decoder layer's, "model.layers.3".
  AttentionLayer(const LayerContext& context, const std::string& name, const RopeTable& rope);

  void Forward(const BatchShape& shape, const float* input, float* output) override;
  void BackwardInput(const BatchShape& shape, const float* input, const float* gradient_output,
                     float* gradient_input) override;
  void BackwardWeights(const BatchShape& shape, const float* input, const float* gradient_output,
                       bool accumulate) override;

 private:
  kernels::AttentionShape ShapeOf(const BatchShape& shape) const;
  std::int64_t query_width() const { return heads_ * head_dim_; }
  std::int64_t key_value_width() const { return kv_heads_ * head_dim_; }
  std::int64_t qkv_width() const { return query_width() + 2 * key_value_width(); }

  Stream& stream_;
  const RopeTable rope_;
  const std::int64_t hidden_;
  const std::int64_t heads_;
  const std::int64_t kv_heads_;
  const std::int64_t head_dim_;
  const Weight q_;  // (qkv_width, hidden) with k and v
  const Weight k_;
  const Weight v_;
  const Weight o_;  // (hidden, query_width)
  Norm norm_;
  float* const qkv_;        // (tokens, qkv_width), q and k rotated
  float* const attended_;   // (tokens, query_width)
  float* const logsumexp_;  // (rows, heads, sequence)
  float* const workspace_;
  float* const gradient_attended_;
  float* const gradient_qkv_;
  float* const gradient_normed_;
};

}  // namespace paceline
