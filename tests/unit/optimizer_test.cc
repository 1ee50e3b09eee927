#include "worker/model/optimizer.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace paceline {
namespace {

std::vector<float> Normals(const std::string& name, std::size_t count, double stddev) {
  std::vector<float> values(count);
  FillInitialNormal(5, name, stddev, values);
  return values;
}

struct Moments {
  std::vector<float> weights;
  std::vector<float> exp_avg;
  std::vector<float> exp_avg_sq;
};

Moments StartOf(std::size_t count) {
  return {Normals("weights", count, 0.1), std::vector<float>(count), std::vector<float>(count)};
}

TEST(AdamWTest, AgreesWithAFloat64Reference) {
  constexpr std::size_t kCount = 1000;
  Stream stream(Stream::Mode::kInline, "compute");
  Moments moments = StartOf(kCount);
  std::vector<double> w(moments.weights.begin(), moments.weights.end());
  std::vector<double> m(kCount);
  std::vector<double> v(kCount);
  AdamWStep step{.learning_rate = 1e-2f,
                 .beta1 = 0.9f,
                 .beta2 = 0.95f,
                 .weight_decay = 0.1f,
                 .gradient_scale = 0.25f};
  for (step.step = 1; step.step <= 10; ++step.step) {
    const std::vector<float> gradients =
        Normals("gradients" + std::to_string(step.step), kCount, 3.0);
    AdamW(stream, step, moments.weights, gradients, moments.exp_avg, moments.exp_avg_sq);
    const double beta1 = step.beta1;
    const double beta2 = step.beta2;
    const auto t = static_cast<double>(step.step);
    for (std::size_t i = 0; i < kCount; ++i) {
      const double g = 0.25 * gradients[i];
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      w[i] -= static_cast<double>(step.learning_rate) * step.weight_decay * w[i];
      w[i] -= step.learning_rate / (1 - std::pow(beta1, t)) * m[i] /
              (std::sqrt(v[i]) / std::sqrt(1 - std::pow(beta2, t)) + step.eps);
    }
  }
  for (std::size_t i = 0; i < kCount; ++i) {
    EXPECT_NEAR(moments.weights[i], w[i], 1e-6) << i;
    EXPECT_NEAR(moments.exp_avg[i], m[i], 1e-6) << i;
    EXPECT_NEAR(moments.exp_avg_sq[i], v[i], 1e-6) << i;
  }
}

std::vector<Parameter> MatrixAndNorm() {
  return {{.name = "matrix", .shape = {4, 24}, .offset = 0, .elements = 96, .weight_decay = true},
          {.name = "norm", .shape = {32}, .offset = 96, .elements = 32, .weight_decay = false}};
}

TEST(AdamWTest, ShardsGiveTheBitsOfTheWhole) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::vector<float> gradients = Normals("gradients", 128, 1.0);
  const AdamWStep step{.step = 3, .learning_rate = 1e-3f};
  Moments whole = StartOf(128);
  AdamWOverParameters(stream, step, MatrixAndNorm(), 0, whole.weights, gradients, whole.exp_avg,
                      whole.exp_avg_sq);
  Moments parts = StartOf(128);
  for (const std::size_t begin : {0, 43, 86}) {
    const std::size_t count = std::min<std::size_t>(43, 128 - begin);
    const auto of_range = [&](std::vector<float>& all) {
      return std::span(all).subspan(begin, count);
    };
    AdamWOverParameters(stream, step, MatrixAndNorm(), static_cast<std::int64_t>(begin),
                        of_range(parts.weights), std::span(gradients).subspan(begin, count),
                        of_range(parts.exp_avg), of_range(parts.exp_avg_sq));
  }
  EXPECT_EQ(whole.weights, parts.weights);
  EXPECT_EQ(whole.exp_avg, parts.exp_avg);
  EXPECT_EQ(whole.exp_avg_sq, parts.exp_avg_sq);
}

TEST(AdamWTest, DecaysMatricesAndNotNorms) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::vector<float> gradients(128, 0.0f);
  const Moments before = StartOf(128);
  Moments after = before;
  AdamWOverParameters(stream, {.learning_rate = 0.5f, .weight_decay = 0.5f}, MatrixAndNorm(), 0,
                      after.weights, gradients, after.exp_avg, after.exp_avg_sq);
  for (std::size_t i = 0; i < 128; ++i) {
    EXPECT_FLOAT_EQ(after.weights[i], before.weights[i] * (i < 96 ? 0.75f : 1.0f)) << i;
  }
}

TEST(SumOfSquaresTest, IsExactWhereFloat32WouldNotBe) {
  Stream stream(Stream::Mode::kInline, "compute");
  std::vector<float> values(10'001, 1e-3f);
  values[0] = 1e4f;
  const double small = 1e-3f;  // as float32 has it
  EXPECT_NEAR(SumOfSquares(stream, values), 1e8 + 1e4 * small * small, 1e-5);
  EXPECT_EQ(SumOfSquares(stream, {}), 0.0);
  values[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(SumOfSquares(stream, values)));
}

TrainSection Schedule(const std::string& name) {
  TrainSection train;
  train.steps = 110;
  train.warmup_steps = 10;
  train.learning_rate = 1.0;
  train.min_learning_rate = 0.1;
  train.lr_schedule = name;
  train.decay_fraction = 0.2;
  return train;
}

TEST(LearningRateTest, WarmsUpLinearlyInEverySchedule) {
  for (const std::string name : {"cosine", "constant", "wsd"}) {
    EXPECT_DOUBLE_EQ(LearningRate(Schedule(name), 1), 0.1) << name;
    EXPECT_DOUBLE_EQ(LearningRate(Schedule(name), 5), 0.5) << name;
    EXPECT_DOUBLE_EQ(LearningRate(Schedule(name), 10), 1.0) << name;
  }
}

TEST(LearningRateTest, CosineEndsAtTheMinimum) {
  EXPECT_DOUBLE_EQ(LearningRate(Schedule("cosine"), 60), 0.55);
  EXPECT_DOUBLE_EQ(LearningRate(Schedule("cosine"), 110), 0.1);
}

TEST(LearningRateTest, ConstantStays) {
  EXPECT_DOUBLE_EQ(LearningRate(Schedule("constant"), 110), 1.0);
}

TEST(LearningRateTest, WsdDecaysOverTheLastFraction) {
  EXPECT_DOUBLE_EQ(LearningRate(Schedule("wsd"), 88), 1.0);
  EXPECT_DOUBLE_EQ(LearningRate(Schedule("wsd"), 99), 0.55);
  EXPECT_DOUBLE_EQ(LearningRate(Schedule("wsd"), 110), 0.1);
}

TEST(LearningRateTest, WithoutWarmUpTheFirstStepHasAlmostTheFullRate) {
  TrainSection train = Schedule("cosine");
  train.warmup_steps = 0;
  EXPECT_NEAR(LearningRate(train, 1), 1.0, 1e-3);
  train.steps = 1;
  EXPECT_DOUBLE_EQ(LearningRate(train, 1), 0.1);
}

}  // namespace
}  // namespace paceline
