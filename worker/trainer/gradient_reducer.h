// Sums gradients over micro-batches and the ranks that share them, a bucket at a time, on the
// communication stream while backward goes on with the next one.
//
// exact: each micro-batch's float32 gradient is added to a float64 accumulator; ranks are
// summed in float64 in rank order; the sum is rounded to float32 once. A sum of a few float32
// values in float64 is exact unless their exponents lie more than 26 or so apart, so the result
// does not depend on how the micro-batches are spread over ranks. (Routed experts that serve
// several ranks have summed those ranks' tokens in float32 before.)
// fast: everything in float32; backward itself accumulates.
//
// A bucket is shared by the data-parallel group, or by the expert-data group where it holds routed
// experts. Each rank of the group sums an equal part of it, its shard. Then either everybody gets
// all of the gradient, or, where the optimizer is sharded (ZeRO-1), everybody keeps the gradient
// of its shard, updates the weights there, and GatherWeights spreads those.
// Invariant: after Finish a rank has the whole group's gradient in its OwnedRanges, with the same
// bits as every other rank that has it.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "worker/collectives/parallel_groups.h"
#include "worker/kernels/stream.h"
#include "worker/model/parameters.h"

namespace paceline {

enum class Reduction { kExact, kFast };

// Elements [begin, begin + count) of the flat arrays.
struct FlatRange {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  bool operator==(const FlatRange&) const = default;
};

// The part of `bucket` that the rank at `at` sums: equal parts for the ranks that share it, the
// last ones cut off where it does not divide.
FlatRange ShardOf(const GradientBucket& bucket, const ParallelLayout& layout,
                  const RankCoordinates& at);

// Of each bucket the range that this rank keeps optimizer state for, and updates: its shard, or
// all of it where the optimizer is not sharded.
std::vector<FlatRange> OwnedRanges(const std::vector<GradientBucket>& buckets,
                                   const ParallelLayout& layout, const RankCoordinates& at);

class GradientReducer {
 public:
  // `gradients`: the model's flat array; results land there. `buckets` cover it.
  GradientReducer(Reduction reduction, std::span<float> gradients,
                  std::vector<GradientBucket> buckets, ParallelGroups& groups, Stream& compute,
                  Stream& communication);

  // Whether backward itself adds the micro-batches up (fast), or overwrites each time (exact).
  bool backward_accumulates() const { return reduction_ == Reduction::kFast; }

  // Bucket `index` of micro-batch `micro_batch` of `micro_batches` is complete on the compute
  // stream. After the last micro-batch its reduction is enqueued.
  void BucketReady(std::size_t index, std::int64_t micro_batch, std::int64_t micro_batches);

  // Waits for every reduction and every gather of weights. The first error of either stream.
  absl::Status Finish();

  // Enqueues on the communication stream, behind what compute has enqueued: all of bucket `index`
  // of `weights` from the group's OwnedRanges. Nothing where the optimizer is not sharded.
  void GatherWeights(std::size_t index, std::span<float> weights);

  std::int64_t bytes() const;  // of accumulators and staging

 private:
  Communicator& GroupOf(std::size_t index) const;
  void ReduceExact(std::size_t index);
  void ReduceFast(std::size_t index);
  void Gather(std::size_t index, const char* name, std::span<float> values);
  bool even(std::size_t index) const;

  const Reduction reduction_;
  const bool sharded_;
  const std::span<float> gradients_;
  const std::vector<GradientBucket> buckets_;
  std::vector<FlatRange> shard_;          // what this rank sums, by bucket
  std::vector<std::size_t> shard_size_;   // elements of everybody's, the padding counted
  std::vector<std::size_t> accumulator_;  // where a bucket begins in sums_
  std::vector<double> sums_;              // exact: padded to whole shards
  std::vector<float> staging_;            // one padded bucket, where a shard does not fit evenly
  std::unique_ptr<Event[]> ready_;
  ParallelGroups& groups_;
  Stream& compute_;
  Stream& communication_;
};

}  // namespace paceline
