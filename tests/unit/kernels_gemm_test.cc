#include <limits>
#include <tuple>

#include "tests/unit/kernels_check.h"
#include "worker/kernels/gemm.h"

namespace paceline::kernels {
namespace {

struct Product {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b;
  float alpha, beta;
  std::int64_t padding;  // of every leading dimension
};

Doubles Reference(const Product& p, const Floats& a, std::int64_t lda, const Floats& b,
                  std::int64_t ldb, const Floats& c, std::int64_t ldc) {
  Doubles out(c.begin(), c.end());
  for (std::int64_t i = 0; i < p.m; ++i) {
    for (std::int64_t j = 0; j < p.n; ++j) {
      double sum = 0;
      for (std::int64_t l = 0; l < p.k; ++l) {
        const double x = p.transpose_a ? a[l * lda + i] : a[i * lda + l];
        const double y = p.transpose_b ? b[j * ldb + l] : b[l * ldb + j];
        sum += x * y;
      }
      const double old = p.beta == 0 ? 0 : p.beta * static_cast<double>(c[i * ldc + j]);
      out[i * ldc + j] = p.alpha * sum + old;
    }
  }
  return out;
}

class KernelsGemmTest : public KernelTest {
 protected:
  void Check(const Product& p) {
    const std::int64_t lda = (p.transpose_a ? p.m : p.k) + p.padding;
    const std::int64_t ldb = (p.transpose_b ? p.k : p.n) + p.padding;
    const std::int64_t ldc = p.n + p.padding;
    const Floats a = RandomFloats((p.transpose_a ? p.k : p.m) * lda, 1);
    const Floats b = RandomFloats((p.transpose_b ? p.n : p.k) * ldb, 2);
    const Floats before = RandomFloats(p.m * ldc, 3);
    Floats c = before;
    const GemmOptions options{p.transpose_a, p.transpose_b, p.alpha, p.beta, lda, ldb, ldc};
    Gemm(stream, c.data(), a.data(), b.data(), p.m, p.n, p.k, options);
    EXPECT_TRUE(Close(c, Reference(p, a, lda, b, ldb, before, ldc), 1e-6))
        << p.m << " x " << p.n << " x " << p.k << " " << p.transpose_a << p.transpose_b;

    Floats again = before;
    Gemm(stream, again.data(), a.data(), b.data(), p.m, p.n, p.k, options);
    EXPECT_TRUE(SameBits(c, again));
  }
};

TEST_F(KernelsGemmTest, EveryTransposeAlphaBetaAndLeadingDimensionMatchesFloat64) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const std::int64_t padding : {0, 5}) {
        Check({37, 53, 29, ta, tb, 1.0f, 0.0f, padding});
        Check({64, 32, 128, ta, tb, 0.5f, 1.0f, padding});
        Check({1, 1, 1, ta, tb, -2.0f, 0.25f, padding});
        Check({1, 96, 128, ta, tb, 1.0f, 0.0f, padding});
      }
    }
  }
}

TEST_F(KernelsGemmTest, EmptyDimensionsAreProductsOfNothing) {
  Floats c = {1, 2, 3, 4};
  const Floats operand(8, 1.0f);
  Gemm(stream, c.data(), operand.data(), operand.data(), 0, 2, 2);
  Gemm(stream, c.data(), operand.data(), operand.data(), 2, 0, 2);
  EXPECT_EQ(c, (Floats{1, 2, 3, 4}));
  Gemm(stream, c.data(), nullptr, nullptr, 2, 2, 0, {.beta = 0.5f});
  EXPECT_EQ(c, (Floats{0.5f, 1, 1.5f, 2}));
  Gemm(stream, c.data(), nullptr, nullptr, 2, 2, 0);
  EXPECT_EQ(c, Floats(4, 0.0f));
}

TEST_F(KernelsGemmTest, BetaZeroOverwritesNaNAndInputsPropagateIt) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t size : {3, 64}) {
    Floats a(size * size, 1.0f);
    Floats c(size * size, nan);
    Gemm(stream, c.data(), a.data(), a.data(), size, size, size);
    EXPECT_EQ(c, Floats(size * size, static_cast<float>(size)));
    Floats with_nan = a;
    with_nan[1] = nan;
    Gemm(stream, c.data(), with_nan.data(), a.data(), size, size, size);
    EXPECT_TRUE(std::isnan(c[0]));
    EXPECT_EQ(c[size], static_cast<float>(size));
  }
}

// Experts with many rows, one, none at either end and in the middle.
TEST_F(KernelsGemmTest, GroupedProductsMatchOneProductAnExpert) {
  const std::vector<std::int32_t> offsets = {0, 0, 7, 8, 8, 40, 40};
  const std::int32_t experts = 6;
  const std::int64_t rows = 40, n = 24, k = 17, stride = 600;
  const Floats a = RandomFloats(rows * k, 1);
  const Floats b = RandomFloats(experts * stride, 2);
  for (const bool transpose_b : {false, true}) {
    Floats c(rows * n, -1.0f);
    GroupedGemm(stream, c.data(), a.data(), b.data(), offsets.data(), n, k, stride,
                {.experts = experts, .transpose_b = transpose_b});
    Floats expected(rows * n, -1.0f);
    for (std::int32_t e = 0; e < experts; ++e) {
      Gemm(stream, expected.data() + offsets[e] * n, a.data() + offsets[e] * k,
           b.data() + e * stride, offsets[e + 1] - offsets[e], n, k, {.transpose_b = transpose_b});
    }
    EXPECT_TRUE(SameBits(c, expected));
  }
}

TEST_F(KernelsGemmTest, GroupedWeightGradientsZeroExpertsWithoutRowsUnlessTheyAccumulate) {
  const std::vector<std::int32_t> offsets = {0, 0, 9, 20, 20};
  const std::int32_t experts = 4;
  const std::int64_t rows = 20, m = 12, n = 10, stride = m * n;
  const Floats a = RandomFloats(rows * m, 1);
  const Floats b = RandomFloats(rows * n, 2);
  for (const float beta : {0.0f, 1.0f}) {
    Floats c = RandomFloats(experts * stride, 3);
    Doubles expected(c.begin(), c.end());
    for (double& value : expected) value *= beta;
    for (std::int32_t e = 0; e < experts; ++e) {
      for (std::int32_t r = offsets[e]; r < offsets[e + 1]; ++r) {
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t j = 0; j < n; ++j) {
            expected[e * stride + i * n + j] += static_cast<double>(a[r * m + i]) * b[r * n + j];
          }
        }
      }
    }
    GroupedGemmWeights(stream, c.data(), a.data(), b.data(), offsets.data(), m, n, stride,
                       {.experts = experts, .beta = beta});
    EXPECT_TRUE(Close(c, expected, 1e-6));
  }
}

}  // namespace
}  // namespace paceline::kernels
