// AdamW over flat ranges, global-norm clipping and learning-rate schedules.
// Invariant: each element's update depends on that element alone (and on the step's scalars),
// so a sharded optimizer gives the same bits as a whole one.
// Threading: as a kernel: belongs to the thread of the stream.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/run_file.h"
#include "worker/kernels/stream.h"
#include "worker/model/parameters.h"

namespace paceline {

struct AdamWStep {
  std::int64_t step = 1;  // 1 is the first; sets the bias correction
  float learning_rate = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0.1f;  // decoupled; 0 for a range without decay
  float gradient_scale = 1;   // the gradient is multiplied by it first (clipping)
};

// Loshchilov & Hutter, arXiv:1711.05101, algorithm 2, as torch.optim.AdamW computes it:
//   w -= lr * wd * w;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps)
// Runs on `stream`; weights, exp_avg and exp_avg_sq are written when it gets there.
void AdamW(Stream& stream, const AdamWStep& step, std::span<float> weights,
           std::span<const float> gradients, std::span<float> exp_avg, std::span<float> exp_avg_sq);

// AdamW over the range of the flat arrays that begins at `offset`, with each parameter's own decay.
// All spans are of that range.
void AdamWOverParameters(Stream& stream, const AdamWStep& step,
                         const std::vector<Parameter>& parameters, std::int64_t offset,
                         std::span<float> weights, std::span<const float> gradients,
                         std::span<float> exp_avg, std::span<float> exp_avg_sq);

// Sum of squares in float64, in a fixed order. Waits for `stream`; NaN when it has failed.
double SumOfSquares(Stream& stream, std::span<const float> values);

// Learning rate of `step` (1 is the first). Linear warm-up over warmup_steps, then
//   cosine    from learning_rate to min_learning_rate at the last step
//   constant  learning_rate
//   wsd       learning_rate, and linearly to min_learning_rate over the last decay_fraction
double LearningRate(const TrainSection& train, std::int64_t step);

}  // namespace paceline
