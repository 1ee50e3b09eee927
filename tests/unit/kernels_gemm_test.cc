#include <limits>
#include <random>

#include "tests/unit/kernels_check.h"
#include "worker/kernels/cpu/sgemm.h"
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

// Around the edges of tiles (14 x 32, 6 x 16), of a vector, of blocks of k (256) and of rows (588),
// and beyond what is read without being copied (256 columns, a stride of 256).
TEST_F(KernelsGemmTest, SizesAroundEveryBlockEdgeMatchFloat64) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const std::int64_t m : {1, 5, 6, 7, 13, 14, 15, 29}) {
        for (const std::int64_t n : {1, 15, 16, 17, 31, 32, 33, 65}) {
          Check({m, n, 19, ta, tb, 1.0f, 0.0f, 3});
        }
      }
      for (const std::int64_t k : {1, 3, 4, 15, 16, 17, 255, 256, 257, 511, 512, 513, 769}) {
        Check({15, 33, k, ta, tb, 1.5f, -0.5f, 1});
        Check({17, 270, k, ta, tb, 1.0f, 1.0f, 0});
      }
      for (const std::int64_t m : {587, 588, 589, 601}) Check({m, 33, 40, ta, tb, 1.0f, 1.0f, 2});
      Check({600, 261, 300, ta, tb, 1.0f, 0.5f, 1030});
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

// Every edge: a tile cut off on the right, one of several blocks of k, a product of nothing.
TEST_F(KernelsGemmTest, BetaZeroNeverReadsC) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t k : {0, 1, 300, 520}) {
    for (const std::int64_t n : {1, 20, 32, 45}) {
      const Floats a(15 * k, 1.0f);
      const Floats b(n * k, 1.0f);
      Floats c(15 * n, nan);
      Gemm(stream, c.data(), a.data(), b.data(), 15, n, k);
      EXPECT_EQ(c, Floats(15 * n, static_cast<float>(k)));
    }
  }
}

TEST_F(KernelsGemmTest, NothingBesideCIsWritten) {
  const std::int64_t m = 15, n = 33, k = 20, ldc = 40;
  const Floats a = RandomFloats(m * k, 1);
  const Floats b = RandomFloats(k * n, 2);
  Floats c(m * ldc, 7.0f);
  Gemm(stream, c.data(), a.data(), b.data(), m, n, k, {.ldc = ldc});
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = n; j < ldc; ++j) EXPECT_EQ(c[i * ldc + j], 7.0f);
  }
}

// A random product with every stride free, and any rectangle of it as a product of its own.
class KernelsGemmBitsTest : public KernelTest {
 protected:
  std::int64_t Uniform(std::int64_t first, std::int64_t last) {
    return first + static_cast<std::int64_t>(generator() % (last - first + 1));
  }

  cpu::SgemmOperands RandomProduct() {
    cpu::SgemmOperands p{};
    p.m = Uniform(1, 100);
    p.n = Uniform(1, 100);
    p.k = Uniform(1, 2) == 1 ? Uniform(1, 64) : Uniform(200, 800);
    if (Uniform(1, 8) == 1) p.m = Uniform(580, 700);
    if (Uniform(1, 4) == 1) p.n = Uniform(250, 400);
    p.transpose_a = Uniform(0, 1) == 1;
    p.transpose_b = Uniform(0, 1) == 1;
    p.alpha = Uniform(0, 1) == 1 ? 1.0f : 0.7f;
    p.beta = 0.5f * static_cast<float>(Uniform(0, 2));
    p.lda = (p.transpose_a ? p.m : p.k) + Padding();
    p.ldb = (p.transpose_b ? p.k : p.n) + Padding();
    p.ldc = p.n + Padding();
    a = RandomFloats((p.transpose_a ? p.k : p.m) * p.lda, generator());
    b = RandomFloats((p.transpose_b ? p.n : p.k) * p.ldb, generator());
    before = RandomFloats(p.m * p.ldc, generator());
    p.a = a.data();
    p.b = b.data();
    return p;
  }

  // Rows [i, i + m) and columns [j, j + n) of p, into `c` where they belong, with operands that
  // are read as they stand in p or as dense copies, transposed the other way.
  void Rectangle(const cpu::SgemmOperands& p, std::int64_t i, std::int64_t m, std::int64_t j,
                 std::int64_t n, bool copies, Floats& c) {
    const float* part_a = p.a + (p.transpose_a ? i : i * p.lda);
    const float* part_b = p.b + (p.transpose_b ? j * p.ldb : j);
    GemmOptions options{p.transpose_a, p.transpose_b, p.alpha, p.beta, p.lda, p.ldb, p.ldc};
    Floats copy_a, copy_b;
    if (copies) {
      copy_a = Turned(part_a, p.lda, p.transpose_a ? p.k : m, p.transpose_a ? m : p.k);
      copy_b = Turned(part_b, p.ldb, p.transpose_b ? n : p.k, p.transpose_b ? p.k : n);
      part_a = copy_a.data();
      part_b = copy_b.data();
      options.transpose_a = !p.transpose_a;
      options.transpose_b = !p.transpose_b;
      options.lda = options.ldb = 0;
    }
    Gemm(stream, c.data() + i * p.ldc + j, part_a, part_b, m, n, p.k, options);
  }

  std::mt19937 generator{20};
  Floats a, b, before;

 private:
  std::int64_t Padding() { return Uniform(1, 6) == 1 ? 1030 : Uniform(0, 7); }

  static Floats Turned(const float* x, std::int64_t stride, std::int64_t rows,
                       std::int64_t columns) {
    Floats turned(rows * columns);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t s = 0; s < columns; ++s) turned[s * rows + r] = x[r * stride + s];
    }
    return turned;
  }
};

// What lets a token's result not depend on the tokens it is multiplied with.
TEST_F(KernelsGemmBitsTest, ARowOrColumnHasTheBitsOfAProductOfItsOwn) {
  for (int round = 0; round < 60; ++round) {
    const cpu::SgemmOperands p = RandomProduct();
    Floats whole = before;
    Rectangle(p, 0, p.m, 0, p.n, false, whole);
    Floats rows = before;
    for (std::int64_t i = 0; i < p.m; ++i) Rectangle(p, i, 1, 0, p.n, false, rows);
    EXPECT_TRUE(SameBits(rows, whole)) << p.m << " x " << p.n << " x " << p.k;
    Floats columns = before;
    for (std::int64_t j = 0; j < p.n; ++j) Rectangle(p, 0, p.m, j, 1, false, columns);
    EXPECT_TRUE(SameBits(columns, whole)) << p.m << " x " << p.n << " x " << p.k;
  }
}

TEST_F(KernelsGemmBitsTest, AnyCutIntoRectanglesAndAnyTransposeGivesEqualBits) {
  for (int round = 0; round < 60; ++round) {
    const cpu::SgemmOperands p = RandomProduct();
    Floats whole = before;
    Rectangle(p, 0, p.m, 0, p.n, false, whole);
    Floats parts = before;
    for (std::int64_t i = 0, rows = 0; i < p.m; i += rows) {
      rows = Uniform(1, p.m - i);
      for (std::int64_t j = 0, columns = 0; j < p.n; j += columns) {
        columns = Uniform(1, p.n - j);
        Rectangle(p, i, rows, j, columns, Uniform(0, 1) == 1, parts);
      }
    }
    EXPECT_TRUE(SameBits(parts, whole)) << p.m << " x " << p.n << " x " << p.k;
  }
}

TEST_F(KernelsGemmBitsTest, EveryInstructionSetGivesEqualBits) {
  alignas(64) static float scratch[cpu::kSgemmScratchFloats];
  for (int round = 0; round < 60; ++round) {
    cpu::SgemmOperands p = RandomProduct();
    Floats expected = before;
    Rectangle(p, 0, p.m, 0, p.n, false, expected);
    for (const cpu::SgemmVersion& version : cpu::SgemmVersions()) {
      Floats c = before;
      p.c = c.data();
      version.multiply(p, scratch);
      EXPECT_TRUE(SameBits(c, expected)) << version.name;
    }
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
