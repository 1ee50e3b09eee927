// Embedding, RMSNorm, RoPE, SwiGLU and cross-entropy.
#include <limits>

#include "tests/unit/kernels_check.h"
#include "worker/kernels/cross_entropy.h"
#include "worker/kernels/embedding.h"
#include "worker/kernels/rmsnorm.h"
#include "worker/kernels/rope.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/swiglu.h"

namespace paceline::kernels {
namespace {

using KernelsEmbeddingTest = KernelTest;
using KernelsRmsNormTest = KernelTest;
using KernelsRopeTest = KernelTest;
using KernelsSwigluTest = KernelTest;
using KernelsCrossEntropyTest = KernelTest;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(KernelsExpTest, StaysWithinAnUlpOrSoAndKeepsNaNAndInfinity) {
  double worst = 0;
  for (double x = -86.0; x < 88.7; x += 0.000937) {
    const float input = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(input));
    const float rounded = static_cast<float>(exact);
    const double ulp = std::nextafter(rounded, kInfinity) - rounded;
    const double error = std::abs(static_cast<double>(Exp(input)) - exact) / ulp;
    if (!(error <= worst)) worst = error;
  }
  EXPECT_TRUE(worst <= 1.1) << worst;
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_EQ(Exp(89.0f), kInfinity);
  EXPECT_EQ(Exp(-kInfinity), 0.0f);
  EXPECT_EQ(Exp(-1000.0f), 0.0f);
  EXPECT_TRUE(std::isnan(Exp(kNaN)));
}

TEST_F(KernelsEmbeddingTest, LooksUpRowsAndAddsGradientsOfRepeatedTokensInRowOrder) {
  const std::int64_t rows = 50, vocab = 7, cols = 19;
  const Floats table = RandomFloats(vocab * cols, 1);
  const Floats dy = RandomFloats(rows * cols, 2);
  std::vector<std::int32_t> tokens = RandomIndices(rows, vocab - 1, 3);  // the last never occurs
  Floats y(rows * cols);
  EmbeddingForward(stream, y.data(), table.data(), tokens.data(), rows, cols);
  Floats in_order(vocab * cols, 0.0f);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      EXPECT_EQ(y[r * cols + c], table[tokens[r] * cols + c]);
      in_order[tokens[r] * cols + c] += dy[r * cols + c];
    }
  }
  Floats dtable(vocab * cols, kNaN);
  EmbeddingBackward(stream, dtable.data(), dy.data(), tokens.data(), rows, vocab, cols, false);
  EXPECT_TRUE(SameBits(dtable, in_order));
  EmbeddingBackward(stream, dtable.data(), dy.data(), tokens.data(), rows, vocab, cols, true);
  Doubles twice = Wide(in_order);
  for (double& value : twice) value *= 2;
  EXPECT_TRUE(Close(dtable, twice, 1e-6));
}

Doubles RmsNorm(const Doubles& x, const Doubles& weight, std::int64_t rows, std::int64_t cols,
                double eps) {
  Doubles y(x.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (std::int64_t c = 0; c < cols; ++c) squares += x[r * cols + c] * x[r * cols + c];
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
    for (std::int64_t c = 0; c < cols; ++c) y[r * cols + c] = x[r * cols + c] * rstd * weight[c];
  }
  return y;
}

constexpr float kEps = 1e-5f;

TEST_F(KernelsRmsNormTest, ForwardMatchesFloat64AloneAndFusedWithTheAddition) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int, int>>{{1, 1}, {3, 7}, {5, 128}, {4, 133}}) {
    const Floats a = RandomFloats(rows * cols, 1);
    const Floats b = RandomFloats(rows * cols, 2);
    const Floats weight = RandomFloats(cols, 3);
    Floats y(a.size()), rstd(rows);
    RmsNormForward(stream, y.data(), rstd.data(), a.data(), weight.data(), rows, cols, kEps);
    EXPECT_TRUE(Close(y, RmsNorm(Wide(a), Wide(weight), rows, cols, kEps), 1e-6));

    Floats sum = a, fused(a.size()), fused_rstd(rows);
    AddRmsNormForward(stream, sum.data(), fused.data(), fused_rstd.data(), sum.data(), b.data(),
                      weight.data(), rows, cols, kEps);
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(sum[i], a[i] + b[i]);
    RmsNormForward(stream, y.data(), rstd.data(), sum.data(), weight.data(), rows, cols, kEps);
    EXPECT_TRUE(SameBits(fused, y));
    EXPECT_TRUE(SameBits(fused_rstd, rstd));
  }
}

TEST_F(KernelsRmsNormTest, BackwardMatchesFiniteDifferences) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int, int>>{{1, 2}, {3, 7}, {4, 16}, {3, 45}}) {
    const Floats x = RandomFloats(rows * cols, 1);
    const Floats weight = RandomFloats(cols, 2);
    const Floats dy = RandomFloats(rows * cols, 3);
    const Floats residual = RandomFloats(rows * cols, 4);
    Floats y(x.size()), rstd(rows);
    RmsNormForward(stream, y.data(), rstd.data(), x.data(), weight.data(), rows, cols, kEps);

    const Doubles wide_x = Wide(x), wide_w = Wide(weight), wide_dy = Wide(dy);
    const auto loss = [&, rows = rows, cols = cols](const Doubles& at, const Doubles& w) {
      return DotProduct(RmsNorm(at, w, rows, cols, kEps), wide_dy);
    };
    Doubles dx_expected =
        NumericalGradient(wide_x, [&](const Doubles& at) { return loss(at, wide_w); });
    const Doubles dweight_expected =
        NumericalGradient(wide_w, [&](const Doubles& at) { return loss(wide_x, at); });

    Floats dx(x.size()), dweight(cols, kNaN);
    RmsNormBackward(stream, dx.data(), dy.data(), x.data(), weight.data(), rstd.data(), nullptr,
                    rows, cols);
    RmsNormWeightGradient(stream, dweight.data(), dy.data(), x.data(), rstd.data(), rows, cols,
                          false);
    EXPECT_TRUE(Close(dx, dx_expected, 1e-5));
    EXPECT_TRUE(Close(dweight, dweight_expected, 1e-5));

    // In place of the residual's gradient, and accumulating: dweight doubles.
    Floats in_place = residual;
    RmsNormBackward(stream, in_place.data(), dy.data(), x.data(), weight.data(), rstd.data(),
                    in_place.data(), rows, cols);
    RmsNormWeightGradient(stream, dweight.data(), dy.data(), x.data(), rstd.data(), rows, cols,
                          true);
    for (std::size_t i = 0; i < dx_expected.size(); ++i) dx_expected[i] += residual[i];
    EXPECT_TRUE(Close(in_place, dx_expected, 1e-5));
    Doubles twice = dweight_expected;
    for (double& value : twice) value *= 2;
    EXPECT_TRUE(Close(dweight, twice, 1e-5));

    Floats over_dy = dy;
    RmsNormBackward(stream, over_dy.data(), over_dy.data(), x.data(), weight.data(), rstd.data(),
                    nullptr, rows, cols);
    EXPECT_TRUE(SameBits(over_dy, dx));
  }
}

TEST_F(KernelsRmsNormTest, NaNStaysInItsRow) {
  Floats x = RandomFloats(3 * 20, 1);
  x[25] = kNaN;
  const Floats weight(20, 1.0f);
  Floats y(x.size()), rstd(3);
  RmsNormForward(stream, y.data(), rstd.data(), x.data(), weight.data(), 3, 20, kEps);
  for (int i = 0; i < 60; ++i) EXPECT_EQ(std::isnan(y[i]), i >= 20 && i < 40) << i;
}

TEST_F(KernelsRopeTest, RotatesHalvesByPositionAndBackwardIsTheInverse) {
  const std::int64_t batch = 2, sequence = 9, heads = 3, head_dim = 10, stride = 37;
  const std::int64_t half = head_dim / 2, rows = batch * sequence;
  Floats cosines(16 * half), sines(16 * half);
  RopeTables(cosines.data(), sines.data(), 16, head_dim, 10000.0);
  const Floats x = RandomFloats(rows * stride, 1);
  Doubles expected = Wide(x);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(r % sequence) *
                             std::pow(10000.0, -2.0 * static_cast<double>(i) / head_dim);
        const std::int64_t first = r * stride + h * head_dim + i;
        const double a = x[first], b = x[first + half];
        expected[first] = a * std::cos(angle) - b * std::sin(angle);
        expected[first + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
  Floats y = x;
  RopeForward(stream, y.data(), cosines.data(), sines.data(), rows, sequence, heads, head_dim,
              stride);
  EXPECT_TRUE(Close(y, expected, 1e-6));
  EXPECT_EQ(y[stride - 1], x[stride - 1]);  // between the rows nothing changes
  // A rotation's gradient is its inverse, so <dy, R x> = <R' dy, x> and R' R x = x.
  RopeBackward(stream, y.data(), cosines.data(), sines.data(), rows, sequence, heads, head_dim,
               stride);
  EXPECT_TRUE(Close(y, Wide(x), 1e-6));
}

double Silu(double x) { return x / (1 + std::exp(-x)); }

TEST_F(KernelsSwigluTest, ForwardAndBackwardMatchFloat64AndFiniteDifferences) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int, int>>{{1, 1}, {3, 7}, {2, 33}, {4, 96}}) {
    const int stride = 2 * cols;
    const Floats both = RandomFloats(rows * stride, 1, 6.0f);
    const Floats dy = RandomFloats(rows * cols, 2);
    const Doubles wide_dy = Wide(dy);
    const auto forward = [rows = rows, cols = cols, stride](const Doubles& x) {
      Doubles y(rows * cols);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < cols; ++c) {
          y[r * cols + c] = Silu(x[r * stride + c]) * x[r * stride + cols + c];
        }
      }
      return y;
    };
    Floats y(rows * cols);
    SwigluForward(stream, y.data(), both.data(), both.data() + cols, rows, cols, stride);
    EXPECT_TRUE(Close(y, forward(Wide(both)), 1e-6));

    const Doubles expected = NumericalGradient(
        Wide(both), [&](const Doubles& x) { return DotProduct(forward(x), wide_dy); });
    Floats gradients(both.size());
    SwigluBackward(stream, gradients.data(), gradients.data() + cols, dy.data(), both.data(),
                   both.data() + cols, rows, cols, stride);
    EXPECT_TRUE(Close(gradients, expected, 1e-5));
    Floats in_place = both;
    SwigluBackward(stream, in_place.data(), in_place.data() + cols, dy.data(), in_place.data(),
                   in_place.data() + cols, rows, cols, stride);
    EXPECT_TRUE(SameBits(in_place, gradients));
  }
}

TEST_F(KernelsSwigluTest, RowsReadOnTheStreamAreAllThatIsTouched) {
  const std::int32_t rows = 2;
  const int cols = 9, stride = 2 * cols, rows_max = 3;
  const Floats both = RandomFloats(rows_max * stride, 1);
  const Floats dy = RandomFloats(rows_max * cols, 2);
  Floats expected(rows_max * cols, kNaN), y(expected.size(), kNaN);
  SwigluForward(stream, expected.data(), both.data(), both.data() + cols, rows, cols, stride);
  SwigluForward(stream, y.data(), both.data(), both.data() + cols, &rows, cols, stride);
  EXPECT_TRUE(SameBits(y, expected));
  Floats expected_gradients = both, gradients = both;
  SwigluBackward(stream, expected_gradients.data(), expected_gradients.data() + cols, dy.data(),
                 both.data(), both.data() + cols, rows, cols, stride);
  SwigluBackward(stream, gradients.data(), gradients.data() + cols, dy.data(), both.data(),
                 both.data() + cols, &rows, cols, stride);
  EXPECT_TRUE(SameBits(gradients, expected_gradients));
}

// Loops are vectorised; the last elements are not. Both must give an element the same bits.
TEST_F(KernelsSwigluTest, AnElementsBitsDoNotDependOnItsPlaceInTheLoop) {
  const Floats gate = RandomFloats(101, 1, 8.0f), up = RandomFloats(101, 2);
  Floats whole(101), shifted(101);
  SwigluForward(stream, whole.data(), gate.data(), up.data(), 1, 101, 101);
  for (int first = 0; first < 101; first += 7) {
    SwigluForward(stream, shifted.data(), gate.data() + first, up.data() + first, 1, 101 - first,
                  101);
    EXPECT_TRUE(SameBits(std::span(whole).subspan(first), std::span(shifted).first(101 - first)));
  }
}

double CrossEntropy(const Doubles& logits, const std::vector<std::int32_t>& targets,
                    std::int64_t vocab) {
  double loss = 0;
  for (std::size_t r = 0; r < targets.size(); ++r) {
    double sum = 0, most = logits[r * vocab];
    for (std::int64_t c = 0; c < vocab; ++c) most = std::max(most, logits[r * vocab + c]);
    for (std::int64_t c = 0; c < vocab; ++c) sum += std::exp(logits[r * vocab + c] - most);
    loss += most + std::log(sum) - logits[r * vocab + targets[r]];
  }
  return loss;
}

TEST_F(KernelsCrossEntropyTest, LossAndGradientMatchFloat64AndFiniteDifferences) {
  for (const auto& [rows, vocab] :
       std::vector<std::pair<int, int>>{{1, 1}, {3, 5}, {4, 16}, {3, 37}}) {
    const Floats logits = RandomFloats(rows * vocab, 1, 5.0f);
    const std::vector<std::int32_t> targets = RandomIndices(rows, vocab, 2);
    const Doubles wide = Wide(logits);
    const double expected = CrossEntropy(wide, targets, vocab);
    double loss = 100;
    CrossEntropyForward(stream, &loss, logits.data(), targets.data(), rows, vocab);
    EXPECT_TRUE(std::abs(loss - 100 - expected) <= 1e-6 * (expected + 1)) << loss;

    const float scale = 0.25f;
    Floats gradient = logits;
    double fused = 100;
    CrossEntropyForwardBackward(stream, &fused, gradient.data(), targets.data(), rows, vocab,
                                scale);
    EXPECT_EQ(fused, loss);
    Doubles numerical = NumericalGradient(
        wide, [&, v = vocab](const Doubles& x) { return scale * CrossEntropy(x, targets, v); });
    if (vocab == 1) numerical.assign(rows, 0.0);  // a sure event has no gradient
    EXPECT_TRUE(Close(gradient, numerical, 1e-5)) << rows << " " << vocab;
  }
}

TEST_F(KernelsCrossEntropyTest, HugeLogitsStayFiniteAndNonFiniteOnesShowInTheLoss) {
  const std::vector<std::int32_t> targets = {1};
  for (const float bad : {kNaN, kInfinity}) {
    for (const int at : {0, 1, 20}) {
      Floats logits = RandomFloats(40, 1);
      for (float& x : logits) x *= 1e4f;
      double loss = 0;
      CrossEntropyForward(stream, &loss, logits.data(), targets.data(), 1, 40);
      EXPECT_TRUE(std::isfinite(loss));
      logits[at] = bad;
      loss = 0;
      CrossEntropyForward(stream, &loss, logits.data(), targets.data(), 1, 40);
      EXPECT_FALSE(std::isfinite(loss)) << bad << " at " << at;
      loss = 0;
      CrossEntropyForwardBackward(stream, &loss, logits.data(), targets.data(), 1, 40, 1.0f);
      EXPECT_FALSE(std::isfinite(loss)) << bad << " at " << at;
    }
  }
}

}  // namespace
}  // namespace paceline::kernels
