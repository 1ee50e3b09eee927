// Transformer is the Model: segments (segment.h) over one arena, and the flat arrays.
//
// Invariant: segments lay out their parameters last to first, so that the flat arrays have them in
// the order in which backward finishes them.
// Threading: as Model's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "worker/model/arena.h"
#include "worker/model/arena_memory.h"
#include "worker/model/layer.h"
#include "worker/model/model.h"
#include "worker/model/segment.h"

namespace paceline {

// A bucket is closed at the end of the part with which it reaches this size: large enough that a
// collective's latency does not count, small enough that much of backward is left to hide it.
inline constexpr std::int64_t kBucketBytesMin = std::int64_t{1} << 20;

// The buckets of one segment, whose parameters begin at `start` in each region, and of which
// completed[i] elements are done after part i. complete_after[i] of them are then complete.
struct SegmentBuckets {
  std::vector<GradientBucket> buckets;
  std::vector<std::size_t> complete_after;
};
SegmentBuckets MergeIntoBuckets(const RegionElements& start,
                                const std::vector<RegionElements>& completed,
                                std::int64_t expert_start);

// What a model needs, as measured.
struct TransformerSizes {
  std::int64_t saved_bytes = 0;
  std::int64_t scratch_bytes = 0;
  RegionElements elements;
};

class Transformer : public Model {
 public:
  // Only measures: sizes() then says what it would take.
  Transformer(const ModelSection& section, const ModelOptions& options, Stream& compute)
      : Transformer(section, options, compute, ArenaMemory(), {}) {}
  // options.part has segments. memory: saved_bytes, then scratch_bytes of `sizes`.
  Transformer(const ModelSection& section, const ModelOptions& options, Stream& compute,
              ArenaMemory memory, const TransformerSizes& sizes);

  TransformerSizes sizes() const { return {saved_.peak(), scratch_.peak(), layout_.elements()}; }

  void Initialize(std::uint64_t seed) override;
  const std::vector<Parameter>& parameters() const override { return parameters_; }
  std::span<StateBuffer> state_buffers() override { return state_buffers_; }
  std::span<float> weights() override { return weights_; }
  std::span<float> gradients() override { return gradients_; }
  const std::vector<GradientBucket>& buckets() const override { return buckets_; }
  float Forward(const MicroBatch& batch, int segment, int micro_batch) override;
  void Backward(float loss_scale, bool accumulate,
                const std::function<void(std::size_t)>& bucket_ready, int segment,
                int micro_batch) override;
  void BackwardInput(float loss_scale, int segment, int micro_batch) override;
  void BackwardWeights(bool accumulate, const std::function<void(std::size_t)>& bucket_ready,
                       int segment, int micro_batch) override;
  SegmentBuffers buffers(int segment, int micro_batch) override;
  void UseExpertGroup(Communicator& group, Stream& communication) override;
  double expert_wait_seconds() const override { return expert_group_.wait_seconds; }
  void Logits(const MicroBatch& batch, std::span<float> logits) override;
  std::span<std::int64_t> expert_tokens() override { return expert_tokens_; }
  void ResetExpertTokens() override;
  void UpdateRouterBias(float rate) override;
  std::int64_t arena_bytes() const override { return saved_.peak() + scratch_.peak(); }

 private:
  // The buckets of one segment within buckets_.
  struct BucketRange {
    std::size_t first = 0;
    std::vector<std::size_t> complete_after;  // by part, how many
  };

  void AllocateState();
  void NameStateBuffers();
  void BuildSegments();
  void BuildSegment(std::size_t index, SegmentOptions options);
  Segment& At(int segment, int micro_batch);
  // Where the micro-batch's input arrives; null: the segment begins the model.
  float* InputOf(int segment, int micro_batch) const;
  // Those of the segment's buckets that its part `part` completes.
  void ReportBuckets(int segment, std::size_t part,
                     const std::function<void(std::size_t)>& bucket_ready) const;

  const ModelSection section_;
  const ModelOptions options_;
  Stream& stream_;
  const ArenaMemory memory_;
  const TransformerSizes sizes_;
  Arena saved_;
  Arena scratch_;

  std::span<float> weights_;
  std::span<float> gradients_;
  std::span<float> balancing_biases_;      // as RoutingState's, or empty
  std::span<std::int64_t> expert_tokens_;  // likewise
  std::vector<StateBuffer> state_buffers_;

  ExpertTransport expert_group_;

  ParameterLayout layout_;
  std::vector<Parameter> parameters_;
  std::vector<std::unique_ptr<Segment>> segments_;  // of segment s, slot i: s * slots + i
  std::vector<float*> inputs_;                      // of segment s, place i: s * (slots + 1) + i
  std::vector<GradientBucket> buckets_;
  std::vector<BucketRange> bucket_ranges_;  // by segment
};

}  // namespace paceline
