// What the kernel tests share: reproducible inputs, comparison against float64 references, and
// gradients by central differences.
// Invariant: every comparison is written so that NaN fails it.
// Threading: pure functions.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Uniform in [-scale, scale).
inline Floats RandomFloats(std::int64_t count, std::uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  Floats values(count);
  for (float& value : values) {
    value = scale * (static_cast<float>(generator() >> 8) * 0x1p-23f - 1.0f);
  }
  return values;
}

inline std::vector<std::int32_t> RandomIndices(std::int64_t count, std::int32_t below,
                                               std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<std::int32_t> values(count);
  for (std::int32_t& value : values) value = static_cast<std::int32_t>(generator() % below);
  return values;
}

inline Doubles Wide(std::span<const float> values) { return {values.begin(), values.end()}; }

// |actual - expected| <= tolerance * |expected| in the Euclidean norm, and no single element off
// by more than that share of the largest one.
inline testing::AssertionResult Close(std::span<const float> actual,
                                      std::span<const double> expected, double tolerance) {
  if (actual.size() != expected.size()) return testing::AssertionFailure() << "sizes differ";
  double norm = 0, difference = 0, largest = 0, worst = 0;
  std::size_t worst_at = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double d = std::abs(static_cast<double>(actual[i]) - expected[i]);
    norm += expected[i] * expected[i];
    difference += d * d;
    largest = std::max(largest, std::abs(expected[i]));
    if (!(d <= worst)) {
      worst = d;
      worst_at = i;
    }
  }
  const double limit = tolerance * std::sqrt(norm) + 1e-30;
  if (!(std::sqrt(difference) <= limit) || !(worst <= 4 * tolerance * largest + 1e-30)) {
    return testing::AssertionFailure() << "relative error " << std::sqrt(difference / norm)
                                       << " over " << tolerance << "; worst at " << worst_at << ": "
                                       << actual[worst_at] << " for " << expected[worst_at];
  }
  return testing::AssertionSuccess();
}

inline testing::AssertionResult SameBits(std::span<const float> a, std::span<const float> b) {
  if (a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "bits differ";
}

// The gradient of `f` at `point` by central differences in float64.
inline Doubles NumericalGradient(Doubles point, const std::function<double(const Doubles&)>& f,
                                 double step = 1e-5) {
  Doubles gradient(point.size());
  for (std::size_t i = 0; i < point.size(); ++i) {
    const double here = point[i];
    point[i] = here + step;
    const double above = f(point);
    point[i] = here - step;
    const double below = f(point);
    point[i] = here;
    gradient[i] = (above - below) / (2 * step);
  }
  return gradient;
}

inline double DotProduct(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The compute stream of a CPU rank.
struct KernelTest : testing::Test {
  Stream stream{Stream::Mode::kInline, "compute"};
  void TearDown() override { EXPECT_TRUE(stream.Synchronize().ok()) << stream.status(); }
};

}  // namespace paceline::kernels
