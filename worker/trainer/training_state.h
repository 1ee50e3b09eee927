// The state that a checkpoint holds: weights, optimizer moments and state buffers, as global
// tensors. Which rank writes which tensor is decided here; every rank can read all of it.
//   "model.norm.weight"                        the weight
//   "optimizer.exp_avg/model.norm.weight"      AdamW's first moment
//   "optimizer.exp_avg_sq/model.norm.weight"   AdamW's second moment
//   "model.layers.1.mlp.gate.e_score_correction_bias"   a state buffer
// Invariant: the slices of all ranks together cover every tensor exactly once.
// Threading: belongs to the step thread.
#pragma once

#include <span>
#include <vector>

#include "common/status.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"

namespace paceline {

struct OptimizerMoments {
  std::span<float> exp_avg;
  std::span<float> exp_avg_sq;
};

// The slices that data-parallel rank `rank` of `size` replicas writes: whole tensors, each given
// to the rank with the fewest bytes so far.
std::vector<SliceView> SlicesOfRank(Model& model, const OptimizerMoments& moments, int rank,
                                    int size);

// Loads weights, moments and state buffers. kDataLoss, kInvalidArgument: name the tensor.
absl::Status LoadState(const CheckpointReader& reader, Model& model,
                       const OptimizerMoments& moments);

// Loads weights and state buffers alone ([checkpoint] init, generate).
absl::Status LoadWeights(const CheckpointReader& reader, Model& model);

}  // namespace paceline
