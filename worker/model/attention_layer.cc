#include "worker/model/attention_layer.h"

#include <cmath>

#include "worker/kernels/elementwise.h"
#include "worker/kernels/gemm.h"
#include "worker/kernels/rope.h"

namespace paceline {

AttentionLayer::AttentionLayer(const LayerContext& context, const std::string& name,
                               const RopeTable& rope)
    : stream_(context.stream),
      rope_(rope),
      hidden_(context.section.hidden_size),
      heads_(context.section.num_attention_heads),
      kv_heads_(context.section.num_key_value_heads),
      head_dim_(context.section.head_dim),
      q_(context.parameters.Add(name + ".self_attn.q_proj.weight", {query_width(), hidden_})),
      k_(context.parameters.Add(name + ".self_attn.k_proj.weight", {key_value_width(), hidden_})),
      v_(context.parameters.Add(name + ".self_attn.v_proj.weight", {key_value_width(), hidden_})),
      o_(context.parameters.Add(name + ".self_attn.o_proj.weight", {hidden_, query_width()})),
      norm_(context, name + ".input_layernorm.weight"),
      qkv_(context.saved.Allocate<float>(context.tokens_max() * qkv_width())),
      attended_(context.saved.Allocate<float>(context.tokens_max() * query_width())),
      logsumexp_(context.saved.Allocate<float>(context.tokens_max() * heads_)),
      workspace_(context.scratch.Allocate<float>(
          kernels::AttentionWorkspace(ShapeOf({context.rows_max, context.sequence_max})))),
      gradient_attended_(context.training
                             ? context.scratch.Allocate<float>(context.tokens_max() * query_width())
                             : nullptr),
      gradient_qkv_(context.training
                        ? context.between.Allocate<float>(context.tokens_max() * qkv_width())
                        : nullptr),
      gradient_normed_(context.training
                           ? context.between.Allocate<float>(context.tokens_max() * hidden_)
                           : nullptr) {}

void AttentionLayer::Forward(const BatchShape& shape, const float* input, float* output) {
  const std::int64_t tokens = shape.tokens();
  norm_.Forward(tokens, input);
  kernels::Gemm(stream_, qkv_, norm_.normed(), q_.value, tokens, qkv_width(), hidden_,
                {.transpose_b = true});
  kernels::RopeForward(stream_, qkv_, rope_.cosines, rope_.sines, tokens, shape.sequence,
                       heads_ + kv_heads_, head_dim_, qkv_width());
  const float* k = qkv_ + query_width();
  kernels::AttentionForward(stream_, attended_, logsumexp_, qkv_, k, k + key_value_width(),
                            workspace_, ShapeOf(shape));
  kernels::Copy(stream_, output, input, tokens * hidden_);
  kernels::Gemm(stream_, output, attended_, o_.value, tokens, hidden_, query_width(),
                {.transpose_b = true, .beta = 1.0f});
}

void AttentionLayer::BackwardInput(const BatchShape& shape, const float* input,
                                   const float* gradient_output, float* gradient_input) {
  const std::int64_t tokens = shape.tokens();
  kernels::Gemm(stream_, gradient_attended_, gradient_output, o_.value, tokens, query_width(),
                hidden_);
  const float* k = qkv_ + query_width();
  float* gradient_k = gradient_qkv_ + query_width();
  kernels::AttentionBackward(stream_, gradient_qkv_, gradient_k, gradient_k + key_value_width(),
                             gradient_attended_, qkv_, k, k + key_value_width(), attended_,
                             logsumexp_, workspace_, ShapeOf(shape));
  kernels::RopeBackward(stream_, gradient_qkv_, rope_.cosines, rope_.sines, tokens, shape.sequence,
                        heads_ + kv_heads_, head_dim_, qkv_width());
  kernels::Gemm(stream_, gradient_normed_, gradient_qkv_, q_.value, tokens, hidden_, qkv_width());
  norm_.BackwardInput(tokens, input, gradient_normed_, gradient_output, gradient_input);
}

void AttentionLayer::BackwardWeights(const BatchShape& shape, const float* input,
                                     const float* gradient_output, bool accumulate) {
  const std::int64_t tokens = shape.tokens();
  const kernels::GemmOptions options{.transpose_a = true, .beta = accumulate ? 1.0f : 0.0f};
  kernels::Gemm(stream_, o_.gradient, gradient_output, attended_, hidden_, query_width(), tokens,
                options);
  kernels::Gemm(stream_, q_.gradient, gradient_qkv_, norm_.normed(), qkv_width(), hidden_, tokens,
                options);
  norm_.BackwardWeights(tokens, input, gradient_normed_, accumulate);
}

kernels::AttentionShape AttentionLayer::ShapeOf(const BatchShape& shape) const {
  const auto qkv_stride = static_cast<std::int32_t>(qkv_width());
  return {
      .batch = static_cast<std::int32_t>(shape.rows),
      .sequence = static_cast<std::int32_t>(shape.sequence),
      .heads = static_cast<std::int32_t>(heads_),
      .kv_heads = static_cast<std::int32_t>(kv_heads_),
      .head_dim = static_cast<std::int32_t>(head_dim_),
      .q_stride = qkv_stride,
      .k_stride = qkv_stride,
      .v_stride = qkv_stride,
      .out_stride = static_cast<std::int32_t>(query_width()),
      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim_))),
  };
}

}  // namespace paceline
