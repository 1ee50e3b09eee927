#include <limits>

#include "tests/unit/kernels_check.h"
#include "worker/kernels/attention.h"

namespace paceline::kernels {
namespace {

// The arrays of one case as forward and backward see them. Everything lies in float32, strided.
struct Case {
  AttentionShape shape;
  Floats q, k, v, dout;

  explicit Case(const AttentionShape& s) : shape(s) {
    const std::int64_t rows = static_cast<std::int64_t>(s.batch) * s.sequence;
    q = RandomFloats(rows * s.q_stride, 1, 1.5f);
    k = RandomFloats(rows * s.k_stride, 2, 1.5f);
    v = RandomFloats(rows * s.v_stride, 3);
    dout = RandomFloats(rows * s.out_stride, 4);
  }
};

AttentionShape Shape(std::int32_t batch, std::int32_t sequence, std::int32_t heads,
                     std::int32_t kv_heads, std::int32_t head_dim, std::int32_t padding = 0) {
  AttentionShape shape{.batch = batch,
                       .sequence = sequence,
                       .heads = heads,
                       .kv_heads = kv_heads,
                       .head_dim = head_dim};
  shape.q_stride = heads * head_dim + padding;
  shape.k_stride = kv_heads * head_dim + 2 * padding;
  shape.v_stride = kv_heads * head_dim + 3 * padding;
  shape.out_stride = heads * head_dim + 4 * padding;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  return shape;
}

// Rows of probabilities and their log-sum-exp of head (b, h), in float64.
struct Reference {
  Doubles out;
  Doubles logsumexp;
};

Reference Forward(const AttentionShape& s, const Doubles& q, const Doubles& k, const Doubles& v) {
  Reference result;
  result.out.assign(static_cast<std::size_t>(s.batch) * s.sequence * s.out_stride, 0.0);
  result.logsumexp.assign(static_cast<std::size_t>(s.batch) * s.heads * s.sequence, 0.0);
  for (int b = 0; b < s.batch; ++b) {
    for (int h = 0; h < s.heads; ++h) {
      const int kv = h / (s.heads / s.kv_heads);
      for (int i = 0; i < s.sequence; ++i) {
        const double* qi = &q[(b * s.sequence + i) * s.q_stride + h * s.head_dim];
        Doubles score(i + 1);
        double most = -std::numeric_limits<double>::infinity();
        for (int j = 0; j <= i; ++j) {
          const double* kj = &k[(b * s.sequence + j) * s.k_stride + kv * s.head_dim];
          for (int d = 0; d < s.head_dim; ++d) score[j] += qi[d] * kj[d];
          score[j] *= static_cast<double>(s.scale);
          most = std::max(most, score[j]);
        }
        double sum = 0;
        for (int j = 0; j <= i; ++j) sum += std::exp(score[j] - most);
        result.logsumexp[(b * s.heads + h) * s.sequence + i] = most + std::log(sum);
        double* out = &result.out[(b * s.sequence + i) * s.out_stride + h * s.head_dim];
        for (int j = 0; j <= i; ++j) {
          const double p = std::exp(score[j] - most) / sum;
          const double* vj = &v[(b * s.sequence + j) * s.v_stride + kv * s.head_dim];
          for (int d = 0; d < s.head_dim; ++d) out[d] += p * vj[d];
        }
      }
    }
  }
  return result;
}

struct Result {
  Floats out, logsumexp, dq, dk, dv;
};

class KernelsAttentionTest : public KernelTest {
 protected:
  // Forward and backward. What lies between strided heads must stay as it was: zero.
  Result Run(const Case& c) {
    const AttentionShape& s = c.shape;
    Result r;
    r.out.assign(c.dout.size(), 0.0f);
    r.logsumexp.assign(static_cast<std::size_t>(s.batch) * s.heads * s.sequence, 0.0f);
    r.dq.assign(c.q.size(), 0.0f);
    r.dk.assign(c.k.size(), 0.0f);
    r.dv.assign(c.v.size(), 0.0f);
    // NaN in the workspace would come through if a kernel read what it had not written.
    Floats workspace(AttentionWorkspace(s), std::numeric_limits<float>::quiet_NaN());
    AttentionForward(stream, r.out.data(), r.logsumexp.data(), c.q.data(), c.k.data(), c.v.data(),
                     workspace.data(), s);
    AttentionBackward(stream, r.dq.data(), r.dk.data(), r.dv.data(), c.dout.data(), c.q.data(),
                      c.k.data(), c.v.data(), r.out.data(), r.logsumexp.data(), workspace.data(),
                      s);
    return r;
  }
};

TEST_F(KernelsAttentionTest, ForwardMatchesFloat64) {
  for (const AttentionShape& shape :
       {Shape(1, 1, 1, 1, 8), Shape(2, 7, 4, 2, 6), Shape(2, 64, 4, 1, 32), Shape(1, 65, 2, 2, 32),
        Shape(1, 200, 3, 3, 16, 5), Shape(2, 130, 4, 2, 8, 3)}) {
    const Case c(shape);
    const Result r = Run(c);
    const Reference expected = Forward(shape, Wide(c.q), Wide(c.k), Wide(c.v));
    EXPECT_TRUE(Close(r.out, expected.out, 1e-6)) << shape.sequence;
    EXPECT_TRUE(Close(r.logsumexp, expected.logsumexp, 1e-6)) << shape.sequence;
  }
}

TEST_F(KernelsAttentionTest, BackwardMatchesFiniteDifferences) {
  for (const AttentionShape& shape : {Shape(1, 2, 1, 1, 4), Shape(2, 7, 4, 2, 4),
                                      Shape(1, 5, 4, 1, 6, 3), Shape(1, 17, 2, 2, 2)}) {
    const Case c(shape);
    const Result r = Run(c);
    const Doubles q = Wide(c.q), k = Wide(c.k), v = Wide(c.v), dout = Wide(c.dout);
    const auto loss = [&](const Doubles& x, const Doubles& y, const Doubles& z) {
      return DotProduct(Forward(shape, x, y, z).out, dout);
    };
    EXPECT_TRUE(
        Close(r.dq, NumericalGradient(q, [&](const Doubles& x) { return loss(x, k, v); }), 1e-5));
    EXPECT_TRUE(
        Close(r.dk, NumericalGradient(k, [&](const Doubles& x) { return loss(q, x, v); }), 1e-5));
    EXPECT_TRUE(
        Close(r.dv, NumericalGradient(v, [&](const Doubles& x) { return loss(q, k, x); }), 1e-5));
  }
}

// Long enough for several blocks, where finite differences of every element would take too
// long: the derivative along one random direction of q, k and v together.
TEST_F(KernelsAttentionTest, BackwardOverSeveralBlocksMatchesADirectionalDerivative) {
  const AttentionShape shape = Shape(2, 150, 4, 2, 8, 3);
  const Case c(shape);
  const Result r = Run(c);
  const Doubles q = Wide(c.q), k = Wide(c.k), v = Wide(c.v), dout = Wide(c.dout);
  for (std::uint32_t seed = 10; seed < 16; ++seed) {
    const Doubles tq = Wide(RandomFloats(q.size(), seed));
    const Doubles tk = Wide(RandomFloats(k.size(), seed + 100));
    const Doubles tv = Wide(RandomFloats(v.size(), seed + 200));
    const auto along = [&](double step) {
      Doubles x = q, y = k, z = v;
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += step * tq[i];
      for (std::size_t i = 0; i < y.size(); ++i) y[i] += step * tk[i];
      for (std::size_t i = 0; i < z.size(); ++i) z[i] += step * tv[i];
      return DotProduct(Forward(shape, x, y, z).out, dout);
    };
    const double expected = (along(1e-5) - along(-1e-5)) / 2e-5;
    const double actual =
        DotProduct(Wide(r.dq), tq) + DotProduct(Wide(r.dk), tk) + DotProduct(Wide(r.dv), tv);
    EXPECT_TRUE(std::abs(actual - expected) <= 1e-4 * (std::abs(expected) + 1.0))
        << actual << " for " << expected;
  }
}

TEST_F(KernelsAttentionTest, ASecondRunGivesTheSameBits) {
  const Case c(Shape(2, 150, 4, 2, 16));
  const Result first = Run(c);
  const Result second = Run(c);
  EXPECT_TRUE(SameBits(first.out, second.out));
  EXPECT_TRUE(SameBits(first.dq, second.dq));
  EXPECT_TRUE(SameBits(first.dk, second.dk));
  EXPECT_TRUE(SameBits(first.dv, second.dv));
}

// The changed token stands inside a block of queries, so its key is masked, not just skipped.
TEST_F(KernelsAttentionTest, LaterTokensDoNotReachEarlierOutputs) {
  const Case base(Shape(1, 300, 2, 1, 8));
  const std::size_t first_changed = 75;
  Case changed = base;
  for (std::size_t i = first_changed * base.shape.k_stride; i < changed.k.size(); ++i) {
    changed.k[i] = 3.0f;
    changed.v[i] = -1e3f;
  }
  const Result a = Run(base);
  const Result b = Run(changed);
  const std::size_t before = first_changed * base.shape.out_stride;
  EXPECT_TRUE(SameBits({a.out.data(), before}, {b.out.data(), before}));
  EXPECT_FALSE(SameBits(a.out, b.out));
}

TEST_F(KernelsAttentionTest, LargeScoresStayFiniteAndNaNPropagates) {
  Case c(Shape(1, 33, 1, 1, 8));
  for (float& x : c.q) x *= 1e3f;
  for (const float x : Run(c).out) EXPECT_TRUE(std::isfinite(x));
  c.q[20 * 8] = std::numeric_limits<float>::quiet_NaN();
  const Result r = Run(c);
  EXPECT_TRUE(std::isnan(r.out[20 * 8]));
  EXPECT_TRUE(std::isnan(r.dq[20 * 8]));
  EXPECT_TRUE(std::isfinite(r.out[19 * 8]));
}

}  // namespace
}  // namespace paceline::kernels
