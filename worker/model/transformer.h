// Transformer is the Model: embedding, layers, head, over one arena.
//
//   tokens -> embedding -> residual[0] -> layers[0] -> residual[1] ... -> head -> loss
//
// Invariant: head, layers and embedding lay out their parameters in the order in which backward
// finishes them, so completed_[i] elements of the flat arrays are done after the i-th of them.
// Threading: as Model's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "worker/model/arena.h"
#include "worker/model/arena_memory.h"
#include "worker/model/attention_layer.h"
#include "worker/model/embedding.h"
#include "worker/model/head.h"
#include "worker/model/layer.h"
#include "worker/model/model.h"

namespace paceline {

// A bucket is closed at the end of the layer with which it reaches this size: large enough that a
// collective's latency does not count, small enough that much of backward is left to hide it.
inline constexpr std::int64_t kBucketBytesMin = std::int64_t{1} << 20;

// Parts of `completed` (elements done after each step of backward, ascending) merged into buckets.
std::vector<GradientBucket> MergeIntoBuckets(const std::vector<std::int64_t>& completed);

class Transformer : public Model {
 public:
  // Only measures: arena_bytes() and scratch_bytes() then say how much it would take.
  Transformer(const ModelSection& section, const ModelOptions& options, Stream& compute)
      : Transformer(section, options, compute, ArenaMemory(), 0) {}
  // memory: arena_bytes(), the last scratch_bytes() of them for scratch.
  Transformer(const ModelSection& section, const ModelOptions& options, Stream& compute,
              ArenaMemory memory, std::int64_t scratch_bytes);

  std::int64_t scratch_bytes() const { return scratch_.peak(); }

  void Initialize(std::uint64_t seed) override;
  const std::vector<Parameter>& parameters() const override { return layout_.parameters(); }
  std::span<StateBuffer> state_buffers() override { return state_buffers_; }
  std::span<float> weights() override { return weights_; }
  std::span<float> gradients() override { return gradients_; }
  const std::vector<GradientBucket>& buckets() const override { return buckets_; }
  float Forward(const MicroBatch& batch) override;
  void Backward(float loss_scale, bool accumulate,
                const std::function<void(std::size_t)>& bucket_ready) override;
  void Logits(const MicroBatch& batch, std::span<float> logits) override;
  std::span<std::int64_t> expert_tokens() override { return expert_tokens_; }
  void ResetExpertTokens() override;
  void UpdateRouterBias(float rate) override;
  ExpertLoad expert_load() const override;
  std::string FirstNonFinite(std::span<const float> flat) const override;
  std::int64_t arena_bytes() const override { return saved_.peak() + scratch_.peak(); }

 private:
  void AllocateState();
  void AllocateActivations();
  void BuildLayers(const LayerContext& context, std::int64_t first_layer, std::int64_t end_layer);
  // Ends what the latest constructed part needs only while it runs.
  void FinishPart(const LayerContext& context, std::int64_t saved_before);
  std::int64_t SparseLayersBefore(std::int64_t layer) const;
  void ForwardToHead(const MicroBatch& batch);

  const ModelSection section_;
  const ModelOptions options_;
  Stream& stream_;
  const ArenaMemory memory_;
  Arena saved_;
  Arena scratch_;

  std::span<float> weights_;
  std::span<float> gradients_;
  std::span<float> balancing_biases_;  // (sparse layers, n_routed_experts), or empty
  std::span<std::int64_t> expert_tokens_;
  std::vector<StateBuffer> state_buffers_;
  RopeTable rope_;
  std::vector<float*> residual_;  // one more than layers; without training they take turns
  float* gradient_ = nullptr;     // of the residual stream, (tokens, hidden)

  ParameterLayout layout_;
  std::optional<Head> head_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::optional<Embedding> embedding_;
  std::vector<std::int64_t> completed_;
  std::vector<GradientBucket> buckets_;

  BatchShape shape_;  // of the latest Forward
  bool ready_for_backward_ = false;
};

}  // namespace paceline
