#include "worker/trainer/gradient_reducer.h"

#include <algorithm>
#include <utility>

#include "worker/kernels/elementwise.h"

namespace paceline {
namespace {

// Ranks that share the bucket, and which of them is the one at `at`.
struct Share {
  int ranks;
  int index;
};
Share ShareOf(const GradientBucket& bucket, const ParallelLayout& layout,
              const RankCoordinates& at) {
  if (bucket.expert) return {layout.expert_data(), at.expert_data};
  return {layout.data, at.data};
}

std::int64_t ShardSize(const GradientBucket& bucket, int ranks) {
  return (bucket.elements + ranks - 1) / ranks;
}

}  // namespace

FlatRange ShardOf(const GradientBucket& bucket, const ParallelLayout& layout,
                  const RankCoordinates& at) {
  const Share share = ShareOf(bucket, layout, at);
  const std::int64_t size = ShardSize(bucket, share.ranks);
  const std::int64_t begin = std::min(share.index * size, bucket.elements);
  return {bucket.offset + begin, std::min(size, bucket.elements - begin)};
}

std::vector<FlatRange> OwnedRanges(const std::vector<GradientBucket>& buckets,
                                   const ParallelLayout& layout, const RankCoordinates& at) {
  std::vector<FlatRange> ranges;
  for (const GradientBucket& bucket : buckets) {
    ranges.push_back(layout.shard_optimizer ? ShardOf(bucket, layout, at)
                                            : FlatRange{bucket.offset, bucket.elements});
  }
  return ranges;
}

GradientReducer::GradientReducer(Reduction reduction, std::span<float> gradients,
                                 std::vector<GradientBucket> buckets, ParallelGroups& groups,
                                 Stream& compute, Stream& communication)
    : reduction_(reduction),
      sharded_(groups.layout().shard_optimizer),
      gradients_(gradients),
      buckets_(std::move(buckets)),
      ready_(std::make_unique<Event[]>(buckets_.size())),
      groups_(groups),
      compute_(compute),
      communication_(communication) {
  std::size_t padded_total = 0;
  std::size_t staging = 0;
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    const Communicator& group = GroupOf(i);
    const auto ranks = static_cast<std::size_t>(group.size());
    shard_.push_back(ShardOf(buckets_[i], groups.layout(), groups.coordinates()));
    shard_size_.push_back(static_cast<std::size_t>(ShardSize(buckets_[i], group.size())));
    accumulator_.push_back(padded_total);
    padded_total += shard_size_[i] * ranks;
    if (!even(i)) staging = std::max(staging, shard_size_[i] * ranks);
  }
  if (reduction_ == Reduction::kExact) sums_.resize(padded_total);
  staging_.resize(staging);
}

Communicator& GradientReducer::GroupOf(std::size_t index) const {
  return buckets_[index].expert ? groups_.expert_data() : groups_.data();
}

bool GradientReducer::even(std::size_t index) const {
  return shard_size_[index] * static_cast<std::size_t>(GroupOf(index).size()) ==
         static_cast<std::size_t>(buckets_[index].elements);
}

void GradientReducer::BucketReady(std::size_t index, std::int64_t micro_batch,
                                  std::int64_t micro_batches) {
  const GradientBucket& bucket = buckets_[index];
  if (reduction_ == Reduction::kExact) {
    double* sums = sums_.data() + accumulator_[index];
    const float* gradients = gradients_.data() + bucket.offset;
    if (micro_batch == 0) {
      kernels::WidenToFloat64(compute_, sums, gradients, bucket.elements);
    } else {
      kernels::AddToFloat64(compute_, sums, gradients, bucket.elements);
    }
  }
  if (micro_batch + 1 < micro_batches) return;
  compute_.Record(ready_[index]);
  communication_.Wait(ready_[index]);
  if (reduction_ == Reduction::kExact) {
    ReduceExact(index);
  } else {
    ReduceFast(index);
  }
}

void GradientReducer::ReduceExact(std::size_t index) {
  Communicator& group = GroupOf(index);
  double* sums = sums_.data() + accumulator_[index];
  double* own = sums + static_cast<std::size_t>(group.rank()) * shard_size_[index];
  group.ReduceScatterSum(communication_, "gradient reduce-scatter", sums, own, shard_size_[index],
                         DataType::kFloat64);
  kernels::RoundToFloat32(communication_, gradients_.data() + shard_[index].begin, own, 1.0,
                          shard_[index].count);
  if (!sharded_) Gather(index, "gradient all-gather", gradients_);
}

void GradientReducer::ReduceFast(std::size_t index) {
  Communicator& group = GroupOf(index);
  if (group.size() == 1) return;
  float* bucket = gradients_.data() + buckets_[index].offset;
  float* all = bucket;
  if (!even(index)) {
    all = staging_.data();
    kernels::Copy(communication_, all, bucket, buckets_[index].elements);
  }
  float* own = all + static_cast<std::size_t>(group.rank()) * shard_size_[index];
  group.ReduceScatterSum(communication_, "gradient reduce-scatter", all, own, shard_size_[index],
                         DataType::kFloat32);
  if (!even(index)) {
    kernels::Copy(communication_, gradients_.data() + shard_[index].begin, own,
                  shard_[index].count);
  }
  if (!sharded_) Gather(index, "gradient all-gather", gradients_);
}

// All of bucket `index` of `values` from the shards of the group's ranks.
void GradientReducer::Gather(std::size_t index, const char* name, std::span<float> values) {
  Communicator& group = GroupOf(index);
  if (group.size() == 1) return;
  float* bucket = values.data() + buckets_[index].offset;
  if (even(index)) {
    group.AllGather(communication_, name, values.data() + shard_[index].begin, bucket,
                    shard_size_[index], DataType::kFloat32);
    return;
  }
  float* own = staging_.data() + static_cast<std::size_t>(group.rank()) * shard_size_[index];
  kernels::Copy(communication_, own, values.data() + shard_[index].begin, shard_[index].count);
  group.AllGather(communication_, name, own, staging_.data(), shard_size_[index],
                  DataType::kFloat32);
  kernels::Copy(communication_, bucket, staging_.data(), buckets_[index].elements);
}

void GradientReducer::GatherWeights(std::size_t index, std::span<float> weights) {
  if (!sharded_) return;
  compute_.Record(ready_[index]);
  communication_.Wait(ready_[index]);
  Gather(index, "weight all-gather", weights);
}

absl::Status GradientReducer::Finish() {
  const absl::Status computed = compute_.Synchronize();
  const absl::Status reduced = communication_.Synchronize();
  return computed.ok() ? reduced : computed;
}

std::int64_t GradientReducer::bytes() const {
  return static_cast<std::int64_t>(sums_.size() * sizeof(double) + staging_.size() * sizeof(float));
}

}  // namespace paceline
