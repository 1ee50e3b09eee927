#include "worker/model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "common/check.h"
#include "worker/kernels/elementwise.h"

namespace paceline {
namespace {

// The step's scalars in float64, rounded once.
kernels::AdamWCoefficients CoefficientsOf(const AdamWStep& step) {
  PACELINE_CHECK(step.step >= 1);
  const auto t = static_cast<double>(step.step);
  const double beta1 = step.beta1;
  const double beta2 = step.beta2;
  const double learning_rate = step.learning_rate;
  return {
      .gradient_scale = step.gradient_scale,
      .decay_factor = static_cast<float>(1.0 - learning_rate * step.weight_decay),
      .beta1 = step.beta1,
      .beta2 = step.beta2,
      .one_minus_beta1 = static_cast<float>(1.0 - beta1),
      .one_minus_beta2 = static_cast<float>(1.0 - beta2),
      .step_size = static_cast<float>(learning_rate / (1.0 - std::pow(beta1, t))),
      .inverse_sqrt_correction = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, t))),
      .eps = step.eps,
  };
}

}  // namespace

void AdamW(Stream& stream, const AdamWStep& step, std::span<float> weights,
           std::span<const float> gradients, std::span<float> exp_avg,
           std::span<float> exp_avg_sq) {
  PACELINE_CHECK(gradients.size() == weights.size() && exp_avg.size() == weights.size() &&
                 exp_avg_sq.size() == weights.size());
  kernels::AdamW(stream, weights.data(), exp_avg.data(), exp_avg_sq.data(), gradients.data(),
                 static_cast<std::int64_t>(weights.size()), CoefficientsOf(step));
}

void AdamWOverParameters(Stream& stream, const AdamWStep& step,
                         const std::vector<Parameter>& parameters, std::int64_t offset,
                         std::span<float> weights, std::span<const float> gradients,
                         std::span<float> exp_avg, std::span<float> exp_avg_sq) {
  const std::int64_t range_end = offset + static_cast<std::int64_t>(weights.size());
  for (const Parameter& parameter : parameters) {
    const std::int64_t begin = std::max(parameter.offset, offset);
    const std::int64_t end = std::min(parameter.offset + parameter.elements, range_end);
    if (begin >= end) continue;
    AdamWStep own = step;
    if (!parameter.weight_decay) own.weight_decay = 0;
    const auto first = static_cast<std::size_t>(begin - offset);
    const auto count = static_cast<std::size_t>(end - begin);
    AdamW(stream, own, weights.subspan(first, count), gradients.subspan(first, count),
          exp_avg.subspan(first, count), exp_avg_sq.subspan(first, count));
  }
}

double SumOfSquares(Stream& stream, std::span<const float> values) {
  double sum = 0;
  kernels::SumOfSquares(stream, &sum, values.data(), static_cast<std::int64_t>(values.size()));
  return stream.Synchronize().ok() ? sum : std::numeric_limits<double>::quiet_NaN();
}

double LearningRate(const TrainSection& train, std::int64_t step) {
  if (step < train.warmup_steps) {
    return train.learning_rate * static_cast<double>(step) /
           static_cast<double>(train.warmup_steps);
  }
  const double range = train.learning_rate - train.min_learning_rate;
  if (train.lr_schedule == "cosine") {
    const auto length =
        static_cast<double>(std::max<std::int64_t>(1, train.steps - train.warmup_steps));
    const double progress = std::min(1.0, static_cast<double>(step - train.warmup_steps) / length);
    return train.min_learning_rate + 0.5 * range * (1.0 + std::cos(std::numbers::pi * progress));
  }
  if (train.lr_schedule == "wsd") {
    const double length = std::max(1.0, train.decay_fraction * static_cast<double>(train.steps));
    const double left = static_cast<double>(std::max<std::int64_t>(0, train.steps - step));
    return train.min_learning_rate + range * std::min(1.0, left / length);
  }
  return train.learning_rate;
}

}  // namespace paceline
