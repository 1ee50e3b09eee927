#include "worker/model/transformer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "worker/kernels/elementwise.h"
#include "worker/kernels/rope.h"
#include "worker/model/dense_mlp.h"
#include "worker/model/moe_layer.h"

namespace paceline {

std::vector<GradientBucket> MergeIntoBuckets(const std::vector<std::int64_t>& completed) {
  constexpr auto kElementsMin = kBucketBytesMin / static_cast<std::int64_t>(sizeof(float));
  std::vector<GradientBucket> buckets;
  std::int64_t start = 0;
  for (const std::int64_t end : completed) {
    if (end - start < kElementsMin && end != completed.back()) continue;
    if (end == start) continue;
    buckets.push_back({start, end - start});
    start = end;
  }
  return buckets;
}

Transformer::Transformer(const ModelSection& section, const ModelOptions& options, Stream& compute,
                         ArenaMemory memory, std::int64_t scratch_bytes)
    : section_(section), options_(options), stream_(compute), memory_(std::move(memory)) {
  if (memory_.data() != nullptr) {
    const std::int64_t saved_bytes = memory_.bytes() - scratch_bytes;
    saved_ = Arena(memory_.data(), saved_bytes);
    scratch_ = Arena(memory_.data() + saved_bytes, scratch_bytes);
  }
  AllocateState();
  AllocateActivations();
  const LayerContext context{.section = section_,
                             .rows_max = options_.micro_batch_size,
                             .sequence_max = options_.sequence_length,
                             .training = options_.training,
                             .stream = stream_,
                             .parameters = layout_,
                             .saved = saved_,
                             .scratch = scratch_};
  // In the order of backward, which is the order of the flat arrays.
  std::int64_t saved_before = saved_.used();
  head_.emplace(context);
  FinishPart(context, saved_before);
  BuildLayers(context, 0, section_.num_hidden_layers);
  saved_before = saved_.used();
  embedding_.emplace(context);
  FinishPart(context, saved_before);
  if (section_.tie_word_embeddings) head_->TieTo(embedding_->table());
  buckets_ = MergeIntoBuckets(completed_);
}

void Transformer::AllocateState() {
  const std::int64_t elements = SizeOfModel(section_).parameters;
  const bool measures = memory_.data() == nullptr;
  const auto take = [&](auto& span, std::int64_t count) {
    auto* data = saved_.Allocate<typename std::decay_t<decltype(span)>::element_type>(count);
    if (!measures) span = {data, static_cast<std::size_t>(count)};
  };
  take(weights_, elements);
  if (options_.training) take(gradients_, elements);
  layout_ = measures ? ParameterLayout() : ParameterLayout(weights_.data(), gradients_.data());

  take(expert_tokens_, SparseLayersBefore(section_.num_hidden_layers) * section_.n_routed_experts);
  std::vector<TensorShape> biases = ModelStateBuffers(section_);
  take(balancing_biases_, static_cast<std::int64_t>(biases.size()) * section_.n_routed_experts);
  if (measures) return;
  float* bias = balancing_biases_.data();
  for (TensorShape& tensor : biases) {
    state_buffers_.push_back({std::move(tensor.name), std::move(tensor.shape), bias});
    bias += section_.n_routed_experts;
  }
}

void Transformer::AllocateActivations() {
  const std::int64_t angles = options_.sequence_length * (section_.head_dim / 2);
  auto* cosines = saved_.Allocate<float>(angles);
  auto* sines = saved_.Allocate<float>(angles);
  if (cosines != nullptr) {
    kernels::RopeTables(cosines, sines, options_.sequence_length, section_.head_dim,
                        section_.rope_theta);
  }
  rope_ = {cosines, sines};

  const std::int64_t stream_elements =
      options_.micro_batch_size * options_.sequence_length * section_.hidden_size;
  const std::size_t residuals = 2 * static_cast<std::size_t>(section_.num_hidden_layers) + 1;
  const std::size_t distinct = options_.training ? residuals : 2;
  for (std::size_t i = 0; i < residuals; ++i) {
    residual_.push_back(i < distinct ? saved_.Allocate<float>(stream_elements)
                                     : residual_[i % distinct]);
  }
  if (options_.training) gradient_ = saved_.Allocate<float>(stream_elements);
}

void Transformer::BuildLayers(const LayerContext& context, std::int64_t first_layer,
                              std::int64_t end_layer) {
  for (std::int64_t layer = end_layer - 1; layer >= first_layer; --layer) {
    const std::string name = absl::StrCat("model.layers.", layer);
    std::int64_t saved_before = saved_.used();
    if (section_.IsSparse(layer)) {
      const std::int64_t first_expert = SparseLayersBefore(layer) * section_.n_routed_experts;
      layers_.push_back(std::make_unique<MoeLayer>(
          context, name,
          balancing_biases_.empty() ? nullptr : balancing_biases_.data() + first_expert,
          expert_tokens_.empty() ? nullptr : expert_tokens_.data() + first_expert));
    } else {
      layers_.push_back(std::make_unique<DenseMlp>(context, name));
    }
    FinishPart(context, saved_before);
    saved_before = saved_.used();
    layers_.push_back(std::make_unique<AttentionLayer>(context, name, rope_));
    FinishPart(context, saved_before);
  }
  std::reverse(layers_.begin(), layers_.end());
}

void Transformer::FinishPart(const LayerContext& context, std::int64_t saved_before) {
  completed_.push_back(layout_.elements());
  context.scratch.Rewind(0);
  if (!context.training) context.saved.Rewind(saved_before);
}

std::int64_t Transformer::SparseLayersBefore(std::int64_t layer) const {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < layer; ++i) count += section_.IsSparse(i) ? 1 : 0;
  return count;
}

void Transformer::Initialize(std::uint64_t seed) {
  for (const Parameter& parameter : layout_.parameters()) {
    const std::span<float> values = weights_.subspan(static_cast<std::size_t>(parameter.offset),
                                                     static_cast<std::size_t>(parameter.elements));
    if (parameter.shape.size() == 1) {
      std::fill(values.begin(), values.end(), 1.0f);
    } else {
      FillInitialNormal(seed, parameter.name, section_.initializer_range, values);
    }
  }
  std::fill(balancing_biases_.begin(), balancing_biases_.end(), 0.0f);
}

void Transformer::ForwardToHead(const MicroBatch& batch) {
  shape_ = {batch.rows, batch.sequence};
  PACELINE_CHECK(batch.rows <= options_.micro_batch_size &&
                 batch.sequence <= options_.sequence_length &&
                 static_cast<std::int64_t>(batch.tokens.size()) == shape_.tokens());
  embedding_->Forward(batch.tokens, residual_[0]);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i]->Forward(shape_, residual_[i], residual_[i + 1]);
  }
}

float Transformer::Forward(const MicroBatch& batch) {
  PACELINE_CHECK(batch.targets.size() == batch.tokens.size());
  ForwardToHead(batch);
  ready_for_backward_ = options_.training;
  return static_cast<float>(head_->ForwardLoss(residual_.back(), batch.targets));
}

void Transformer::Backward(float loss_scale, bool accumulate,
                           const std::function<void(std::size_t)>& bucket_ready) {
  PACELINE_CHECK(ready_for_backward_);
  ready_for_backward_ = false;
  std::size_t next_bucket = 0;
  const auto report = [&](std::size_t part) {
    while (next_bucket < buckets_.size() &&
           buckets_[next_bucket].offset + buckets_[next_bucket].elements <= completed_[part]) {
      bucket_ready(next_bucket++);
    }
  };
  head_->Backward(residual_.back(), loss_scale, gradient_, accumulate);
  report(0);
  for (std::size_t i = layers_.size(); i-- > 0;) {
    layers_[i]->Backward(shape_, residual_[i], gradient_, accumulate);
    report(layers_.size() - i);
  }
  // A tied table already holds the head's part.
  embedding_->Backward(gradient_, accumulate || section_.tie_word_embeddings);
  report(layers_.size() + 1);
}

void Transformer::Logits(const MicroBatch& batch, std::span<float> logits) {
  ForwardToHead(batch);
  ready_for_backward_ = false;
  PACELINE_CHECK(static_cast<std::int64_t>(logits.size()) == shape_.tokens() * section_.vocab_size);
  head_->Logits(residual_.back(), shape_.tokens(), logits.data());
}

void Transformer::ResetExpertTokens() {
  std::fill(expert_tokens_.begin(), expert_tokens_.end(), 0);
}

void Transformer::UpdateRouterBias(float rate) {
  if (balancing_biases_.empty()) return;
  const auto experts = static_cast<std::size_t>(section_.n_routed_experts);
  for (std::size_t first = 0; first < expert_tokens_.size(); first += experts) {
    const std::span<const std::int64_t> loads = expert_tokens_.subspan(first, experts);
    std::int64_t sum = 0;
    for (const std::int64_t load : loads) sum += load;
    for (std::size_t e = 0; e < experts; ++e) {
      // Compared without dividing, so that no rounding decides the sign.
      const std::int64_t excess = loads[e] * section_.n_routed_experts - sum;
      if (excess < 0) balancing_biases_[first + e] += rate;
      if (excess > 0) balancing_biases_[first + e] -= rate;
    }
  }
}

ExpertLoad Transformer::expert_load() const {
  ExpertLoad load;
  const auto experts = static_cast<std::size_t>(section_.n_routed_experts);
  for (std::size_t first = 0; first < expert_tokens_.size(); first += experts) {
    std::int64_t sum = 0;
    std::int64_t most = 0;
    for (const std::int64_t tokens : expert_tokens_.subspan(first, experts)) {
      sum += tokens;
      most = std::max(most, tokens);
      load.dead += tokens == 0 ? 1 : 0;
    }
    if (sum == 0) continue;
    load.max_over_mean =
        std::max(load.max_over_mean, static_cast<double>(most) * static_cast<double>(experts) /
                                         static_cast<double>(sum));
  }
  return load;
}

std::string Transformer::FirstNonFinite(std::span<const float> flat) const {
  PACELINE_CHECK(flat.size() == weights_.size());
  std::int64_t index = -1;
  kernels::FirstNonFinite(stream_, &index, flat.data(), static_cast<std::int64_t>(flat.size()));
  if (!stream_.Synchronize().ok() || index < 0) return "";
  for (const Parameter& parameter : parameters()) {
    if (index < parameter.offset + parameter.elements) return parameter.name;
  }
  return "";
}

}  // namespace paceline
