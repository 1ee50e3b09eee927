#include <limits>

#include "tests/unit/kernels_check.h"
#include "worker/kernels/elementwise.h"

namespace paceline::kernels {
namespace {

using KernelsElementwiseTest = KernelTest;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST_F(KernelsElementwiseTest, FillCopyAddAndScaleTouchTheirRangeAlone) {
  for (const std::int64_t n : {0, 1, 15, 16, 17, 1000}) {
    const Floats a = RandomFloats(n + 1, 1), b = RandomFloats(n + 1, 2);
    Floats y(n + 1, 7.0f);
    Fill(stream, y.data(), 3.0f, n);
    EXPECT_EQ(y, [&] {
      Floats e(n + 1, 3.0f);
      e[n] = 7.0f;
      return e;
    }());
    Copy(stream, y.data(), a.data(), n);
    Add(stream, y.data(), y.data(), b.data(), n);
    for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i], a[i] + b[i]);
    Scale(stream, y.data(), a.data(), -0.3f, n);
    for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i], -0.3f * a[i]);
    EXPECT_EQ(y[n], 7.0f);
  }
}

// Sums of few float32 gradients of like size are exact in float64, so their order does not
// matter; they are rounded once.
TEST_F(KernelsElementwiseTest, Float64AccumulationIsExactAndRoundsOnce) {
  const std::int64_t n = 333;
  const Floats a = RandomFloats(n, 1), b = RandomFloats(n, 2), c = RandomFloats(n, 3);
  Doubles forward(n, kNaN), backward(n, kNaN);
  WidenToFloat64(stream, forward.data(), a.data(), n);
  AddToFloat64(stream, forward.data(), b.data(), n);
  AddToFloat64(stream, forward.data(), c.data(), n);
  WidenToFloat64(stream, backward.data(), c.data(), n);
  AddToFloat64(stream, backward.data(), b.data(), n);
  AddToFloat64(stream, backward.data(), a.data(), n);
  EXPECT_EQ(forward, backward);
  Floats y(n);
  RoundToFloat32(stream, y.data(), forward.data(), 0.25, n);
  for (std::int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(y[i], static_cast<float>(0.25 * (static_cast<double>(a[i]) + b[i] + c[i])));
  }
}

TEST_F(KernelsElementwiseTest, SumOfSquaresIsFloat64AndRepeatable) {
  for (const std::int64_t n : {0, 1, 16, 37, 100003}) {
    const Floats x = RandomFloats(n, 1, 10.0f);
    double expected = 0, sum = kNaN, again = kNaN;
    for (const float v : x) expected += static_cast<double>(v) * v;
    SumOfSquares(stream, &sum, x.data(), n);
    SumOfSquares(stream, &again, x.data(), n);
    EXPECT_TRUE(std::abs(sum - expected) <= 1e-12 * expected) << sum;
    EXPECT_EQ(sum, again);
  }
}

TEST_F(KernelsElementwiseTest, FirstNonFiniteNamesTheFirst) {
  Floats x = RandomFloats(20000, 1);
  std::int64_t index = 0;
  FirstNonFinite(stream, &index, x.data(), 20000);
  EXPECT_EQ(index, -1);
  FirstNonFinite(stream, &index, x.data(), 0);
  EXPECT_EQ(index, -1);
  x[19999] = -std::numeric_limits<float>::infinity();
  FirstNonFinite(stream, &index, x.data(), 20000);
  EXPECT_EQ(index, 19999);
  x[4097] = kNaN;
  FirstNonFinite(stream, &index, x.data(), 20000);
  EXPECT_EQ(index, 4097);
  x[0] = std::numeric_limits<float>::max();
  x[5] = std::numeric_limits<float>::denorm_min();
  FirstNonFinite(stream, &index, x.data(), 20000);
  EXPECT_EQ(index, 4097);
}

AdamWCoefficients Coefficients(int step) {
  AdamWCoefficients c;
  c.gradient_scale = 0.5f;
  c.decay_factor = 1.0f - 1e-3f * 0.1f;
  c.step_size = static_cast<float>(1e-3 / (1 - std::pow(0.9, step)));
  c.inverse_sqrt_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(0.95, step)));
  return c;
}

TEST_F(KernelsElementwiseTest, AdamWFollowsItsFormulaOverSeveralSteps) {
  const std::int64_t n = 77;
  Floats w = RandomFloats(n, 1), m(n, 0.0f), v(n, 0.0f);
  Doubles rw = Wide(w), rm(n, 0.0), rv(n, 0.0);
  for (int step = 1; step <= 5; ++step) {
    const Floats g = RandomFloats(n, 10 + step);
    AdamW(stream, w.data(), m.data(), v.data(), g.data(), n, Coefficients(step));
    for (std::int64_t i = 0; i < n; ++i) {
      const double gradient = 0.5 * g[i];
      rw[i] *= 1 - 1e-3 * 0.1;
      rm[i] = 0.9 * rm[i] + 0.1 * gradient;
      rv[i] = 0.95 * rv[i] + 0.05 * gradient * gradient;
      rw[i] -= 1e-3 / (1 - std::pow(0.9, step)) * rm[i] /
               (std::sqrt(rv[i] / (1 - std::pow(0.95, step))) + 1e-8);
    }
  }
  EXPECT_TRUE(Close(w, rw, 1e-6));
  EXPECT_TRUE(Close(m, rm, 1e-6));
  EXPECT_TRUE(Close(v, rv, 1e-6));
}

TEST_F(KernelsElementwiseTest, AdamWOnShardsGivesTheBitsOfTheWhole) {
  const std::int64_t n = 205;
  const Floats g = RandomFloats(n, 1), start = RandomFloats(n, 2);
  Floats w = start, m(n, 0.1f), v(n, 0.2f);
  AdamW(stream, w.data(), m.data(), v.data(), g.data(), n, Coefficients(3));
  for (const std::int64_t shard : {1, 3, 16, 50}) {
    Floats sw = start, sm(n, 0.1f), sv(n, 0.2f);
    for (std::int64_t first = 0; first < n; first += shard) {
      AdamW(stream, &sw[first], &sm[first], &sv[first], &g[first], std::min(shard, n - first),
            Coefficients(3));
    }
    EXPECT_TRUE(SameBits(w, sw));
    EXPECT_TRUE(SameBits(m, sm));
    EXPECT_TRUE(SameBits(v, sv));
  }
}

}  // namespace
}  // namespace paceline::kernels
