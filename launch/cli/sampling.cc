#include "launch/cli/sampling.h"

#include <cmath>

namespace paceline::cli {

std::int32_t Sampler::Draw(std::span<const float> logits) {
  std::int32_t likeliest = -1;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) continue;
    if (likeliest < 0 || logits[i] > logits[static_cast<std::size_t>(likeliest)]) {
      likeliest = static_cast<std::int32_t>(i);
    }
  }
  if (temperature_ <= 0 || likeliest < 0) return likeliest;
  const double highest = logits[static_cast<std::size_t>(likeliest)];
  if (std::isinf(highest)) return likeliest;
  weights_.resize(logits.size());
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((logits[i] - highest) / temperature_);
    weights_[i] = std::isnan(weight) ? 0 : weight;
    total += weights_[i];
  }
  // 53 random bits; the standard's distributions differ between libraries.
  double point = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    point -= weights_[i];
    if (point < 0) return static_cast<std::int32_t>(i);
  }
  return likeliest;  // rounding left a rest
}

}  // namespace paceline::cli
