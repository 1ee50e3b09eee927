// The gate, and dispatch to experts and back.
#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "tests/unit/kernels_check.h"
#include "worker/kernels/dispatch.h"
#include "worker/kernels/router.h"

namespace paceline::kernels {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Doubles Scores(const Doubles& logits, std::int64_t tokens, const RouterOptions& o) {
  Doubles scores(logits.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    double sum = 0;
    for (int e = 0; e < o.experts; ++e) sum += std::exp(logits[t * o.experts + e]);
    for (int e = 0; e < o.experts; ++e) {
      const double x = logits[t * o.experts + e];
      scores[t * o.experts + e] =
          o.score == GateScore::kSigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x) / sum;
    }
  }
  return scores;
}

// Weights of given experts.
Doubles Weights(const Doubles& logits, const std::vector<std::int32_t>& expert, std::int64_t tokens,
                const RouterOptions& o) {
  const Doubles scores = Scores(logits, tokens, o);
  Doubles weights(expert.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    double sum = 0;
    for (int k = 0; k < o.top_k; ++k) sum += scores[t * o.experts + expert[t * o.top_k + k]];
    for (int k = 0; k < o.top_k; ++k) {
      const double s = scores[t * o.experts + expert[t * o.top_k + k]];
      weights[t * o.top_k + k] =
          static_cast<double>(o.routed_scaling_factor) * (o.norm_topk_prob ? s / (sum + 1e-20) : s);
    }
  }
  return weights;
}

struct Routed {
  Floats scores, weights;
  std::vector<std::int32_t> expert;
};

class KernelsRouterTest : public KernelTest {
 protected:
  Routed Route(const Floats& logits, const float* bias, std::int64_t tokens,
               const RouterOptions& o) {
    Routed r;
    r.scores.resize(logits.size());
    r.weights.resize(tokens * o.top_k);
    r.expert.resize(tokens * o.top_k);
    RouterForward(stream, r.scores.data(), r.expert.data(), r.weights.data(), logits.data(), bias,
                  tokens, o);
    return r;
  }
};

std::vector<RouterOptions> AllOptions() {
  std::vector<RouterOptions> all;
  for (const GateScore score : {GateScore::kSigmoid, GateScore::kSoftmax}) {
    for (const bool norm : {false, true}) {
      all.push_back({8, 2, score, norm, 1.0f});
      all.push_back({5, 5, score, norm, 2.5f});
      all.push_back({3, 1, score, norm, 1.5f});
      all.push_back({64, 6, score, norm, 1.0f});
      all.push_back({1, 1, score, norm, 1.0f});
    }
  }
  return all;
}

TEST_F(KernelsRouterTest, ChoosesByScorePlusBiasAndWeighsByScoreAlone) {
  const std::int64_t tokens = 40;
  for (const RouterOptions& o : AllOptions()) {
    const Floats logits = RandomFloats(tokens * o.experts, 1, 3.0f);
    const Floats bias = RandomFloats(o.experts, 2, 0.5f);
    const Routed r = Route(logits, bias.data(), tokens, o);
    EXPECT_TRUE(Close(r.scores, Scores(Wide(logits), tokens, o), 1e-6));
    EXPECT_TRUE(Close(r.weights, Weights(Wide(logits), r.expert, tokens, o), 1e-6));
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<std::int32_t> order(o.experts);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        return r.scores[t * o.experts + a] + bias[a] > r.scores[t * o.experts + b] + bias[b];
      });
      for (int k = 0; k < o.top_k; ++k) EXPECT_EQ(r.expert[t * o.top_k + k], order[k]);
    }
  }
}

TEST_F(KernelsRouterTest, TiesGoToTheLowerExpertAndScoresMayReplaceLogits) {
  const RouterOptions o{6, 3, GateScore::kSigmoid, true, 1.0f};
  Floats logits = {0, 1, 0, 1, 1, 1};
  std::vector<std::int32_t> expert(3);
  Floats weights(3);
  RouterForward(stream, logits.data(), expert.data(), weights.data(), logits.data(), nullptr, 1, o);
  EXPECT_EQ(expert, (std::vector<std::int32_t>{1, 3, 4}));
  EXPECT_EQ(Route(Floats(6, 0.0f), nullptr, 1, o).expert, (std::vector<std::int32_t>{0, 1, 2}));
}

TEST_F(KernelsRouterTest, NaNIsChosenAndTheChoiceStaysDistinctAndInRange) {
  for (const GateScore score : {GateScore::kSigmoid, GateScore::kSoftmax}) {
    const RouterOptions o{6, 2, score, true, 1.0f};
    Floats logits = RandomFloats(6, 1);
    logits[4] = kNaN;
    const Routed one = Route(logits, nullptr, 1, o);
    EXPECT_TRUE(std::isnan(one.weights[0]));
    const Routed all = Route(Floats(6, kNaN), nullptr, 1, o);
    for (const Routed& r : {one, all}) {
      EXPECT_EQ(std::set(r.expert.begin(), r.expert.end()).size(), 2u);
      for (const std::int32_t e : r.expert) EXPECT_TRUE(e >= 0 && e < 6);
    }
  }
}

TEST_F(KernelsRouterTest, BackwardMatchesFiniteDifferencesOfTheWeights) {
  const std::int64_t tokens = 7;
  for (const RouterOptions& o : AllOptions()) {
    const Floats logits = RandomFloats(tokens * o.experts, 1, 2.0f);
    const Floats bias = RandomFloats(o.experts, 2, 0.2f);
    const Floats dweights = RandomFloats(tokens * o.top_k, 3);
    const Routed r = Route(logits, bias.data(), tokens, o);
    Floats dlogits(logits.size(), kNaN);
    RouterBackward(stream, dlogits.data(), dweights.data(), r.scores.data(), r.expert.data(),
                   tokens, o);
    const Doubles wide_dweights = Wide(dweights);
    const Doubles expected = NumericalGradient(Wide(logits), [&](const Doubles& x) {
      return DotProduct(Weights(x, r.expert, tokens, o), wide_dweights);
    });
    // One expert's normalised weight is constant: there the truth is 0 and differences are noise.
    const bool constant = o.norm_topk_prob && o.top_k == 1;
    const bool sure = o.experts == 1 && o.score == GateScore::kSoftmax;
    if (constant || sure) {
      for (const float x : dlogits) EXPECT_TRUE(std::abs(x) <= 1e-6f) << x;
    } else {
      EXPECT_TRUE(Close(dlogits, expected, 1e-5));
    }
  }
}

struct Sorted {
  std::vector<std::int32_t> offsets, row, assignment;
};

class KernelsDispatch : public KernelTest {
 protected:
  Sorted Sort(const std::vector<std::int32_t>& expert, std::int64_t experts) {
    Sorted s;
    s.offsets.assign(experts + 1, -1);
    s.row.assign(expert.size(), -1);
    s.assignment.assign(expert.size(), -1);
    SortByExpert(stream, s.offsets.data(), s.row.data(), s.assignment.data(), expert.data(),
                 static_cast<std::int64_t>(expert.size()), experts);
    return s;
  }
};

using KernelsDispatchSortTest = KernelsDispatch;
using KernelsDispatchRowsTest = KernelsDispatch;

TEST_F(KernelsDispatchSortTest, IsStableCountsEveryExpertAndLeavesEmptyOnesEmpty) {
  std::vector<std::vector<std::int32_t>> cases = {
      {}, {2}, {3, 3, 3, 3, 3}, {0, 5, 0, 5, 2, 2, 0}, RandomIndices(1000, 5, 1)};
  for (const std::vector<std::int32_t>& expert : cases) {
    const Sorted s = Sort(expert, 6);
    std::vector<std::int32_t> order(expert.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return expert[a] < expert[b]; });
    EXPECT_EQ(s.assignment, order);
    for (std::size_t p = 0; p < order.size(); ++p) {
      EXPECT_EQ(s.row[order[p]], static_cast<std::int32_t>(p));
    }
    EXPECT_EQ(s.offsets.front(), 0);
    EXPECT_EQ(s.offsets.back(), static_cast<std::int32_t>(expert.size()));
    std::vector<std::int64_t> counts(6, 10);
    CountExpertTokens(stream, counts.data(), s.offsets.data(), 6);
    for (int e = 0; e < 6; ++e) {
      EXPECT_EQ(counts[e], 10 + std::count(expert.begin(), expert.end(), e));
    }
  }
}

TEST_F(KernelsDispatchRowsTest, GatherAndItsGradientAreTransposesOfEachOther) {
  const std::int64_t tokens = 30, top_k = 3, cols = 21;
  const Sorted s = Sort(RandomIndices(tokens * top_k, 4, 1), 4);
  const Floats x = RandomFloats(tokens * cols, 2);
  const Floats dout = RandomFloats(tokens * top_k * cols, 3);
  const Floats base = RandomFloats(tokens * cols, 4);
  Floats out(dout.size());
  GatherRows(stream, out.data(), x.data(), s.assignment.data(), tokens, top_k, cols);
  Doubles expected(x.size(), 0.0);
  for (std::int64_t p = 0; p < tokens * top_k; ++p) {
    for (std::int64_t c = 0; c < cols; ++c) {
      EXPECT_EQ(out[p * cols + c], x[s.assignment[p] / top_k * cols + c]);
      expected[s.assignment[p] / top_k * cols + c] += dout[p * cols + c];
    }
  }
  Floats dx(x.size(), kNaN);
  GatherRowsBackward(stream, dx.data(), dout.data(), s.row.data(), nullptr, tokens, top_k, cols);
  EXPECT_TRUE(Close(dx, expected, 1e-6));
  dx = base;
  GatherRowsBackward(stream, dx.data(), dout.data(), s.row.data(), dx.data(), tokens, top_k, cols);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += base[i];
  EXPECT_TRUE(Close(dx, expected, 1e-6));
}

// Every token to the same expert, and a mixture with experts that get none.
TEST_F(KernelsDispatchRowsTest, CombineMatchesFloat64AndItsGradientsFiniteDifferences) {
  const std::int64_t tokens = 6, top_k = 2, cols = 9;
  for (const std::vector<std::int32_t>& expert :
       {std::vector<std::int32_t>(tokens * top_k, 1), RandomIndices(tokens * top_k, 3, 1)}) {
    const Sorted s = Sort(expert, 5);
    const Floats x = RandomFloats(tokens * top_k * cols, 2);
    const Floats weights = RandomFloats(tokens * top_k, 3);
    const Floats base = RandomFloats(tokens * cols, 4);
    const Floats dy = RandomFloats(tokens * cols, 5);
    const auto forward = [&](const Doubles& at, const Doubles& w) {
      Doubles y = Wide(base);
      for (std::int64_t a = 0; a < tokens * top_k; ++a) {
        for (std::int64_t c = 0; c < cols; ++c) {
          y[a / top_k * cols + c] += w[a] * at[s.row[a] * cols + c];
        }
      }
      return y;
    };
    const Doubles wide_x = Wide(x), wide_w = Wide(weights), wide_dy = Wide(dy);
    Floats y = base;
    CombineForward(stream, y.data(), x.data(), s.row.data(), weights.data(), y.data(), tokens,
                   top_k, cols);
    EXPECT_TRUE(Close(y, forward(wide_x, wide_w), 1e-6));

    Floats dx = x, dweights(weights.size());
    CombineBackward(stream, dx.data(), dweights.data(), dy.data(), dx.data(), s.row.data(),
                    weights.data(), tokens, top_k, cols);
    EXPECT_TRUE(Close(
        dx,
        NumericalGradient(
            wide_x, [&](const Doubles& at) { return DotProduct(forward(at, wide_w), wide_dy); }),
        1e-5));
    EXPECT_TRUE(Close(
        dweights,
        NumericalGradient(
            wide_w, [&](const Doubles& at) { return DotProduct(forward(wide_x, at), wide_dy); }),
        1e-5));
  }
}

// Three sources of blocks for two experts, and back.
TEST_F(KernelsDispatchRowsTest, RowBlocksMoveWhereTheyAreToldAndBack) {
  const std::int64_t cols = 5;
  const std::vector<std::int32_t> block_rows = {2, 1, 1, 0, 0, 3};  // (source, expert)
  const std::vector<std::int32_t> by_source = {0, 2, 3, 4, 4, 4};
  const std::vector<std::int32_t> by_expert = {0, 3, 2, 4, 3, 4};
  const Floats x = RandomFloats(7 * cols, 1);
  Floats y(x.size(), kNaN), back(x.size(), kNaN);
  MoveRowBlocks(stream, y.data(), by_expert.data(), x.data(), by_source.data(), block_rows.data(),
                6, cols);
  const std::vector<int> expected = {0, 1, 3, 2, 4, 5, 6};
  for (std::size_t row = 0; row < expected.size(); ++row) {
    EXPECT_TRUE(std::equal(y.begin() + static_cast<std::ptrdiff_t>(row) * cols,
                           y.begin() + static_cast<std::ptrdiff_t>(row + 1) * cols,
                           x.begin() + expected[row] * cols))
        << row;
  }
  MoveRowBlocks(stream, back.data(), by_source.data(), y.data(), by_expert.data(),
                block_rows.data(), 6, cols);
  EXPECT_EQ(back, x);
}

}  // namespace
}  // namespace paceline::kernels
