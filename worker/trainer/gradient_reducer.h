// Sums gradients over micro-batches and data-parallel ranks, a bucket at a time, on the
// communication stream while backward goes on with the next one.
//
// exact: each micro-batch's float32 gradient is added to a float64 accumulator; ranks are
// summed in float64 in rank order; the sum is rounded to float32 once. A sum of a few float32
// values in float64 is exact unless their exponents lie more than 26 or so apart, so the result
// does not depend on how the micro-batches are spread over ranks.
// fast: everything in float32; backward itself accumulates.
// Invariant: after Finish every rank holds the same bits in the gradients.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "worker/collectives/communicator.h"
#include "worker/kernels/stream.h"
#include "worker/model/parameters.h"

namespace paceline {

enum class Reduction { kExact, kFast };

class GradientReducer {
 public:
  // `gradients`: the model's flat array; results land there. `buckets` cover it.
  GradientReducer(Reduction reduction, std::span<float> gradients,
                  std::vector<GradientBucket> buckets, Communicator& communicator, Stream& compute,
                  Stream& communication);

  // Whether backward itself adds the micro-batches up (fast), or overwrites each time (exact).
  bool backward_accumulates() const { return reduction_ == Reduction::kFast; }

  // Bucket `index` of micro-batch `micro_batch` of `micro_batches` is complete on the compute
  // stream. After the last micro-batch its reduction is enqueued.
  void BucketReady(std::size_t index, std::int64_t micro_batch, std::int64_t micro_batches);

  // Waits for every reduction. The first error of either stream.
  absl::Status Finish();

  std::int64_t bytes() const;  // of accumulators and staging

 private:
  void ReduceExact(std::size_t index);
  void ReduceFast(std::size_t index);
  float* Destination(std::size_t index);
  bool even(std::size_t index) const;

  const Reduction reduction_;
  const std::span<float> gradients_;
  const std::vector<GradientBucket> buckets_;
  std::vector<std::size_t> shard_;        // elements a rank sums, by bucket
  std::vector<std::size_t> accumulator_;  // where a bucket begins in sums_
  std::vector<double> sums_;              // exact: padded to whole shards
  std::vector<float> staging_;            // one padded bucket, where a shard does not fit evenly
  std::unique_ptr<Event[]> ready_;
  Communicator& communicator_;
  Stream& compute_;
  Stream& communication_;
};

}  // namespace paceline
