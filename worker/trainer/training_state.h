// The state that a checkpoint holds: weights, optimizer moments and state buffers, as slices of
// global tensors, so that any layout can read what another has written.
//   "model.norm.weight"                        the weight
//   "optimizer.exp_avg/model.norm.weight"      AdamW's first moment
//   "optimizer.exp_avg_sq/model.norm.weight"   AdamW's second moment
//   "model.layers.1.mlp.gate.e_score_correction_bias"   a state buffer
// Ranks that hold the same parameters share the writing: each writes the ranges of the flat arrays
// that it sums gradients for, cut into boxes of the tensors they meet.
// Invariant: the slices of all ranks together cover every tensor exactly once.
// Threading: belongs to the step thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/parallel_layout.h"
#include "common/status.h"
#include "paceline/v1/training.pb.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/trainer/gradient_reducer.h"
#include "worker/trainer/step_history.h"

namespace paceline {

// A box of a tensor whose elements lie one after the other in it.
struct TensorBox {
  std::vector<std::int64_t> start;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // of its first element
  std::int64_t elements = 0;
};

// Elements [begin, begin + count) of a row-major tensor of one or two dimensions as boxes, in
// order: part of a row, whole rows, part of a row, as far as there are any.
std::vector<TensorBox> BoxesOf(const std::vector<std::int64_t>& shape, std::int64_t begin,
                               std::int64_t count);

// AdamW's moments of some ranges of the flat arrays, one range after the other.
class OptimizerMoments {
 public:
  OptimizerMoments() = default;
  // Zeros. `ranges`: apart, in any order.
  explicit OptimizerMoments(std::vector<FlatRange> ranges);

  const std::vector<FlatRange>& ranges() const { return ranges_; }
  std::span<float> exp_avg(std::size_t range) { return Of(exp_avg_, range); }
  std::span<float> exp_avg_sq(std::size_t range) { return Of(exp_avg_sq_, range); }
  // Of all ranges.
  std::span<float> exp_avg() { return exp_avg_; }
  std::span<float> exp_avg_sq() { return exp_avg_sq_; }

 private:
  std::span<float> Of(std::vector<float>& values, std::size_t range);

  std::vector<FlatRange> ranges_;
  std::vector<std::size_t> begin_;  // of each range in the arrays
  std::vector<float> exp_avg_;
  std::vector<float> exp_avg_sq_;
};

// The whole state of a rank's place in the layout, without its model: what outlives a generation in
// memory.
struct LiveState {
  std::int64_t step = 0;  // the last completed one
  StepHistory history;
  std::vector<float> weights;
  std::vector<std::vector<float>> state_buffers;
  OptimizerMoments moments;
};

LiveState TakeLiveState(std::int64_t step, const StepHistory& history, Model& model,
                        OptimizerMoments moments);
// kFailedPrecondition: it is of another place or model.
absl::Status PutLiveState(LiveState state, Model& model, OptimizerMoments& moments,
                          StepHistory& history);

// Every array of the state, in the same order on ranks of the same place.
std::vector<std::span<std::byte>> StateArrays(Model& model, OptimizerMoments& moments,
                                              StepHistory& history);

// Of these, what every rank with the same share of the model holds alike. None where there is one
// such rank, or with a sharded optimizer: every step spreads what a rank then holds alone.
std::vector<std::span<std::byte>> ReplicatedArrays(Model& model, OptimizerMoments& moments,
                                                   const ParallelLayout& layout);

// The slices that the rank at `at` writes. `moments` has a range for each of the model's buckets,
// which covers at least the rank's shard of it.
std::vector<SliceView> SlicesToWrite(Model& model, OptimizerMoments& moments,
                                     const ParallelLayout& layout, const RankCoordinates& at);

// Loads weights, moments and state buffers. kDataLoss, kInvalidArgument: name the tensor.
absl::Status LoadState(const CheckpointReader& reader, Model& model, OptimizerMoments& moments);

// Loads weights and state buffers alone ([checkpoint] init, generate).
absl::Status LoadWeights(const CheckpointReader& reader, Model& model);

}  // namespace paceline
