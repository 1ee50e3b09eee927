// The next token, drawn from a model's logits.
// Threading: a Sampler belongs to one thread.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace paceline::cli {

// Invariant: equal seed, temperature and logits give equal draws, on every machine whose logits
// are equal.
class Sampler {
 public:
  // temperature 0: always the most likely token, the lowest of equals.
  Sampler(double temperature, std::uint64_t seed) : temperature_(temperature), random_(seed) {}

  // -1: no logit is a number.
  std::int32_t Draw(std::span<const float> logits);

 private:
  double temperature_;
  std::mt19937_64 random_;
  std::vector<double> weights_;
};

}  // namespace paceline::cli
