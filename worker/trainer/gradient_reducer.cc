#include "worker/trainer/gradient_reducer.h"

#include <algorithm>
#include <utility>

#include "worker/kernels/elementwise.h"

namespace paceline {

GradientReducer::GradientReducer(Reduction reduction, std::span<float> gradients,
                                 std::vector<GradientBucket> buckets, Communicator& communicator,
                                 Stream& compute, Stream& communication)
    : reduction_(reduction),
      gradients_(gradients),
      buckets_(std::move(buckets)),
      ready_(std::make_unique<Event[]>(buckets_.size())),
      communicator_(communicator),
      compute_(compute),
      communication_(communication) {
  const auto ranks = static_cast<std::size_t>(communicator.size());
  std::size_t padded_total = 0;
  std::size_t staging = 0;
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    const auto elements = static_cast<std::size_t>(buckets_[i].elements);
    shard_.push_back((elements + ranks - 1) / ranks);
    accumulator_.push_back(padded_total);
    padded_total += shard_.back() * ranks;
    if (!even(i)) staging = std::max(staging, shard_.back() * ranks);
  }
  if (reduction_ == Reduction::kExact) sums_.resize(padded_total);
  staging_.resize(staging);
}

bool GradientReducer::even(std::size_t index) const {
  return shard_[index] * static_cast<std::size_t>(communicator_.size()) ==
         static_cast<std::size_t>(buckets_[index].elements);
}

float* GradientReducer::Destination(std::size_t index) {
  return even(index) ? gradients_.data() + buckets_[index].offset : staging_.data();
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
  const std::size_t shard = shard_[index];
  const auto rank = static_cast<std::size_t>(communicator_.rank());
  double* sums = sums_.data() + accumulator_[index];
  float* destination = Destination(index);
  communicator_.ReduceScatterSum(communication_, "gradient reduce-scatter", sums,
                                 sums + rank * shard, shard, DataType::kFloat64);
  kernels::RoundToFloat32(communication_, destination + rank * shard, sums + rank * shard, 1.0,
                          static_cast<std::int64_t>(shard));
  communicator_.AllGather(communication_, "gradient all-gather", destination + rank * shard,
                          destination, shard, DataType::kFloat32);
  if (!even(index)) {
    kernels::Copy(communication_, gradients_.data() + buckets_[index].offset, destination,
                  buckets_[index].elements);
  }
}

void GradientReducer::ReduceFast(std::size_t index) {
  if (communicator_.size() == 1) return;
  const std::size_t shard = shard_[index];
  const auto rank = static_cast<std::size_t>(communicator_.rank());
  float* gradients = gradients_.data() + buckets_[index].offset;
  float* destination = Destination(index);
  if (!even(index)) {
    kernels::Copy(communication_, destination, gradients, buckets_[index].elements);
  }
  communicator_.ReduceScatterSum(communication_, "gradient reduce-scatter", destination,
                                 destination + rank * shard, shard, DataType::kFloat32);
  communicator_.AllGather(communication_, "gradient all-gather", destination + rank * shard,
                          destination, shard, DataType::kFloat32);
  if (!even(index)) {
    kernels::Copy(communication_, gradients, destination, buckets_[index].elements);
  }
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
