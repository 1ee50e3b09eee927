#include "worker/model/model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model/transformer.h"

namespace paceline {
namespace {

using testing::HasSubstr;

ModelSection SmallSparse() {
  ModelSection model;
  model.vocab_size = 37;
  model.hidden_size = 32;
  model.num_hidden_layers = 3;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 10;
  model.intermediate_size = 48;
  model.n_routed_experts = 5;
  model.n_shared_experts = 2;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 20;
  model.first_k_dense_replace = 1;
  model.scoring_func = "sigmoid";
  model.initializer_range = 0.2;
  return model;
}

constexpr std::int64_t kRows = 2;
constexpr std::int64_t kSequence = 19;

struct Batch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
  std::int64_t rows;
  std::int64_t sequence;

  operator MicroBatch() const { return {tokens, targets, rows, sequence}; }
};

Batch MakeBatch(std::int64_t rows, std::int64_t sequence, std::int32_t start = 1) {
  Batch batch{{}, {}, rows, sequence};
  for (std::int64_t i = 0; i < rows * sequence; ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>((start + i * i) % 37));
    batch.targets.push_back(static_cast<std::int32_t>((start + (i + 1) * (i + 1)) % 37));
  }
  return batch;
}

std::string NonFinite(const Model& model, std::span<const float> flat) {
  Stream stream(Stream::Mode::kInline, "compute");
  return FirstNonFinite(stream, model.parameters(), flat, 0,
                        static_cast<std::int64_t>(flat.size()));
}

class ModelTest : public testing::Test {
 protected:
  std::unique_ptr<Model> Make(const ModelSection& section, std::int64_t rows = kRows,
                              std::int64_t sequence = kSequence, bool training = true) {
    absl::StatusOr<std::unique_ptr<Model>> model =
        Model::Create(section, {rows, sequence, training}, compute_);
    EXPECT_TRUE(model.ok()) << model.status();
    (*model)->Initialize(/*seed=*/1);
    return *std::move(model);
  }

  std::string CreateError(const ModelSection& section) {
    const auto model = Model::Create(section, {kRows, kSequence, true}, compute_);
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(model.status().message());
  }

  static void Step(Model& model, const Batch& batch, bool accumulate = false) {
    model.Forward(batch);
    model.Backward(1.0f, accumulate, [](std::size_t) {});
  }

  static std::vector<float> GradientsOf(Model& model) {
    return {model.gradients().begin(), model.gradients().end()};
  }

  static std::span<float> Slice(std::span<float> flat, const Model& model,
                                const std::string& name) {
    for (const Parameter& parameter : model.parameters()) {
      if (parameter.name == name) {
        return flat.subspan(static_cast<std::size_t>(parameter.offset),
                            static_cast<std::size_t>(parameter.elements));
      }
    }
    ADD_FAILURE() << "no parameter " << name;
    return {};
  }

  Stream compute_{Stream::Mode::kInline, "compute"};
};

TEST_F(ModelTest, ParametersAreThoseOfTheShapeAndLieDense) {
  for (const bool tied : {false, true}) {
    ModelSection section = SmallSparse();
    section.tie_word_embeddings = tied;
    const std::unique_ptr<Model> model = Make(section);
    std::vector<std::string> expected;
    for (const TensorShape& tensor : ModelTensors(section)) expected.push_back(tensor.name);
    std::vector<std::string> actual;
    std::int64_t end = 0;
    for (const Parameter& parameter : model->parameters()) {
      actual.push_back(parameter.name);
      EXPECT_EQ(parameter.offset, end);
      EXPECT_EQ(parameter.offset % kAlignElements, 0);
      end += parameter.elements;
    }
    EXPECT_THAT(actual, testing::UnorderedElementsAreArray(expected));
    EXPECT_EQ(static_cast<std::int64_t>(model->weights().size()), end);
  }
}

TEST_F(ModelTest, InitialWeightsAreAFunctionOfSeedNameAndElement) {
  ModelSection section = SmallSparse();
  const std::unique_ptr<Model> model = Make(section);
  section.num_hidden_layers = 2;  // another layout with the same names
  const std::unique_ptr<Model> shorter = Make(section);
  const std::string name = "model.layers.1.mlp.experts.3.down_proj.weight";
  const std::span<float> values = Slice(model->weights(), *model, name);
  EXPECT_TRUE(
      std::equal(values.begin(), values.end(), Slice(shorter->weights(), *shorter, name).begin()));
  EXPECT_EQ(values[5], InitialNormal(1, name, 5, section.initializer_range));
  for (const float value : Slice(model->weights(), *model, "model.norm.weight")) {
    EXPECT_EQ(value, 1.0f);
  }
}

// Central differences of the float32 loss along random directions through all weights; what is
// left of the error is the loss's own rounding. The parity test holds the gradients tighter.
TEST_F(ModelTest, GradientAgreesWithFiniteDifferences) {
  for (const bool sparse : {false, true}) {
    ModelSection section = SmallSparse();
    section.tie_word_embeddings = !sparse;
    if (!sparse) section.n_routed_experts = 0;
    const std::unique_ptr<Model> model = Make(section);
    // The loss jumps where a token changes its experts, so the choice is nailed down.
    for (StateBuffer& buffer : model->state_buffers()) buffer.data[0] = buffer.data[3] = 10.0f;
    const Batch batch = MakeBatch(kRows, kSequence);
    Step(*model, batch);
    const std::vector<float> gradients = GradientsOf(*model);
    const double norm =
        std::sqrt(std::inner_product(gradients.begin(), gradients.end(), gradients.begin(), 0.0));
    const std::vector<float> origin(model->weights().begin(), model->weights().end());
    for (const std::string direction_name : {"d1", "d2", "d3"}) {
      std::vector<float> direction(origin.size());
      FillInitialNormal(1, direction_name, 1.0, direction);
      const double slope =
          std::inner_product(gradients.begin(), gradients.end(), direction.begin(), 0.0);
      constexpr double kStep = 2e-4;
      const auto loss_at = [&](double distance) -> double {
        for (std::size_t i = 0; i < origin.size(); ++i) {
          model->weights()[i] = static_cast<float>(origin[i] + distance * direction[i]);
        }
        return model->Forward(batch);
      };
      const double difference = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
      EXPECT_NEAR(difference, slope, 5e-3 * norm) << "sparse " << sparse;
    }
  }
}

TEST_F(ModelTest, TwoRunsGiveTheSameBits) {
  const std::unique_ptr<Model> first = Make(SmallSparse());
  const std::unique_ptr<Model> second = Make(SmallSparse());
  const Batch batch = MakeBatch(kRows, kSequence);
  Step(*second, MakeBatch(kRows, kSequence, 9));  // what ran before leaves no trace
  EXPECT_EQ(first->Forward(batch), second->Forward(batch));
  first->Backward(0.5f, false, [](std::size_t) {});
  second->Backward(0.5f, false, [](std::size_t) {});
  EXPECT_EQ(GradientsOf(*first), GradientsOf(*second));
}

TEST_F(ModelTest, BackwardOverwritesOrAccumulates) {
  for (const bool tied : {false, true}) {
    ModelSection section = SmallSparse();
    section.tie_word_embeddings = tied;
    const std::unique_ptr<Model> model = Make(section);
    std::ranges::fill(model->gradients(), std::numeric_limits<float>::quiet_NaN());
    Step(*model, MakeBatch(kRows, kSequence, 1));
    const std::vector<float> first = GradientsOf(*model);
    Step(*model, MakeBatch(kRows, kSequence, 2));
    const std::vector<float> second = GradientsOf(*model);
    Step(*model, MakeBatch(kRows, kSequence, 1), /*accumulate=*/true);
    for (std::size_t i = 0; i < first.size(); ++i) {
      const float sum = first[i] + second[i];
      ASSERT_NEAR(model->gradients()[i], sum, 1e-4 + 1e-5 * std::abs(sum)) << i;
    }
  }
}

TEST_F(ModelTest, SmallerMicroBatchIsTakenAsIfTheModelWereMadeForIt) {
  const std::unique_ptr<Model> large = Make(SmallSparse(), 4, 64);
  const std::unique_ptr<Model> small = Make(SmallSparse(), 1, 7);
  Step(*large, MakeBatch(4, 64));
  const Batch batch = MakeBatch(1, 7);
  EXPECT_EQ(large->Forward(batch), small->Forward(batch));
  large->Backward(1.0f, false, [](std::size_t) {});
  small->Backward(1.0f, false, [](std::size_t) {});
  EXPECT_EQ(GradientsOf(*large), GradientsOf(*small));
}

TEST_F(ModelTest, InferenceModelGivesTheSameLossInLessMemory) {
  const std::unique_ptr<Model> training = Make(SmallSparse());
  const std::unique_ptr<Model> inference = Make(SmallSparse(), kRows, kSequence, false);
  const Batch batch = MakeBatch(kRows, kSequence);
  EXPECT_EQ(training->Forward(batch), inference->Forward(batch));
  EXPECT_LT(inference->arena_bytes(), training->arena_bytes() / 2);
  EXPECT_TRUE(inference->gradients().empty());
}

TEST_F(ModelTest, LogitsAreThoseOfTheLoss) {
  const std::unique_ptr<Model> model = Make(SmallSparse(), kRows, kSequence, false);
  const Batch batch = MakeBatch(kRows, 11);
  std::vector<float> logits(kRows * 11 * 37);
  model->Logits(batch, logits);
  double loss = 0;
  for (std::size_t row = 0; row < batch.targets.size(); ++row) {
    double sum = 0;
    for (std::size_t c = 0; c < 37; ++c) sum += std::exp(static_cast<double>(logits[row * 37 + c]));
    loss += std::log(sum) - logits[row * 37 + static_cast<std::size_t>(batch.targets[row])];
  }
  EXPECT_NEAR(model->Forward(batch), loss, 1e-5 * loss);
}

TEST_F(ModelTest, LaterTokensDoNotReachEarlierLogits) {
  const std::unique_ptr<Model> model = Make(SmallSparse(), 1, kSequence, false);
  Batch batch = MakeBatch(1, kSequence);
  std::vector<float> before(kSequence * 37);
  model->Logits(batch, before);
  batch.tokens[10] = (batch.tokens[10] + 1) % 37;
  std::vector<float> after(kSequence * 37);
  model->Logits(batch, after);
  // Not to the bit: how many rows an expert multiplies may change how the product is blocked.
  for (std::size_t i = 0; i < 10 * 37; ++i) EXPECT_NEAR(before[i], after[i], 1e-5f) << i;
  for (std::size_t row = 10; row < kSequence; ++row) {
    EXPECT_GT(std::abs(before[row * 37] - after[row * 37]), 1e-4f) << row;
  }
}

TEST(MergeIntoBucketsTest, ClosesABucketAtTheFirstLayerEndPastTheMinimum) {
  const std::int64_t mebi = kBucketBytesMin / 4;
  const SegmentBuckets merged = MergeIntoBuckets(
      {40, 8}, {{100, 8}, {mebi, 2 * mebi}, {mebi + 47, 2 * mebi}, {4 * mebi, 2 * mebi + 1}},
      /*expert_start=*/5000);
  const auto expect_bucket = [&](std::size_t i, std::int64_t offset, std::int64_t elements,
                                 bool expert) {
    EXPECT_EQ(merged.buckets[i].offset, offset) << i;
    EXPECT_EQ(merged.buckets[i].elements, elements) << i;
    EXPECT_EQ(merged.buckets[i].expert, expert) << i;
  };
  ASSERT_EQ(merged.buckets.size(), 4u);
  expect_bucket(0, 5008, 2 * mebi - 8, true);
  expect_bucket(1, 40, mebi + 7, false);
  expect_bucket(2, mebi + 47, 3 * mebi - 47, false);
  expect_bucket(3, 5000 + 2 * mebi, 1, true);
  EXPECT_THAT(merged.complete_after, testing::ElementsAre(0, 1, 2, 4));
}

TEST_F(ModelTest, BucketsCoverTheGradientsAndAreFinalWhenReported) {
  for (const bool tied : {false, true}) {
    ModelSection section = SmallSparse();
    section.tie_word_embeddings = tied;
    section.intermediate_size = 4096;  // its layer fills a bucket
    section.moe_intermediate_size = 400;
    const std::unique_ptr<Model> model = Make(section);
    EXPECT_GT(model->buckets().size(), 2u);
    std::vector<float> seen(model->gradients().size(), std::numeric_limits<float>::quiet_NaN());
    std::size_t reported = 0;
    model->Forward(MakeBatch(kRows, kSequence));
    model->Backward(1.0f, false, [&](std::size_t i) {
      ASSERT_EQ(i, reported++);
      const GradientBucket& bucket = model->buckets()[i];
      std::copy_n(model->gradients().begin() + bucket.offset, bucket.elements,
                  seen.begin() + bucket.offset);
    });
    EXPECT_EQ(reported, model->buckets().size());
    EXPECT_EQ(seen, GradientsOf(*model));
  }
}

// Balancing biases far above any score send every token to one expert.
TEST_F(ModelTest, ExpertsWithoutTokensGetAZeroGradientAndTheOthersTheirs) {
  ModelSection section = SmallSparse();
  section.num_experts_per_tok = 1;
  const std::unique_ptr<Model> model = Make(section);
  ASSERT_EQ(model->state_buffers().size(), 2u);
  for (StateBuffer& buffer : model->state_buffers()) buffer.data[3] = 100.0f;
  std::ranges::fill(model->gradients(), std::numeric_limits<float>::quiet_NaN());
  Step(*model, MakeBatch(kRows, kSequence));

  EXPECT_THAT(
      std::vector<std::int64_t>(model->expert_tokens().begin(), model->expert_tokens().begin() + 5),
      testing::ElementsAre(0, 0, 0, kRows * kSequence, 0));
  EXPECT_EQ(NonFinite(*model, model->gradients()), "");
  const auto largest = [&](const std::string& name) {
    float most = 0;
    for (const float g : Slice(model->gradients(), *model, name))
      most = std::max(most, std::abs(g));
    return most;
  };
  for (const std::string matrix : {"gate_proj", "up_proj", "down_proj"}) {
    EXPECT_EQ(largest("model.layers.1.mlp.experts.0." + matrix + ".weight"), 0.0f);
    EXPECT_GT(largest("model.layers.1.mlp.experts.3." + matrix + ".weight"), 0.0f);
  }
  const ExpertLoad load = ExpertLoadOf(model->expert_tokens().first(5));
  EXPECT_EQ(load.dead, 4);
  EXPECT_DOUBLE_EQ(load.max_over_mean, 5.0);
}

TEST_F(ModelTest, RouterBiasMovesTowardsTheMeanLoad) {
  const std::unique_ptr<Model> model = Make(SmallSparse());
  const std::vector<std::int64_t> loads = {2, 3, 1, 2, 2, 0, 0, 0, 0, 10};
  std::ranges::copy(loads, model->expert_tokens().begin());
  model->UpdateRouterBias(0.5f);
  const float* first = model->state_buffers()[0].data;
  EXPECT_THAT(std::vector<float>(first, first + 5), testing::ElementsAre(0, -0.5, 0.5, 0, 0));
  const float* second = model->state_buffers()[1].data;
  EXPECT_THAT(std::vector<float>(second, second + 5),
              testing::ElementsAre(0.5, 0.5, 0.5, 0.5, -0.5));
}

TEST_F(ModelTest, ExpertTokensAddUpUntilReset) {
  const std::unique_ptr<Model> model = Make(SmallSparse());
  for (int i = 0; i < 3; ++i) model->Forward(MakeBatch(kRows, kSequence));
  const auto tokens = model->expert_tokens();
  EXPECT_EQ(std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}),
            3 * kRows * kSequence * 2 * 2);
  model->ResetExpertTokens();
  EXPECT_EQ(std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}), 0);
}

TEST_F(ModelTest, NonFiniteValueIsNamedByItsParameter) {
  const std::unique_ptr<Model> model = Make(SmallSparse());
  EXPECT_EQ(NonFinite(*model, model->weights()), "");
  const std::string name = "model.layers.2.self_attn.v_proj.weight";
  Slice(model->weights(), *model, name)[3] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(NonFinite(*model, model->weights()), name);
  EXPECT_TRUE(std::isnan(model->Forward(MakeBatch(kRows, kSequence))));
}

TEST_F(ModelTest, FieldsThatDoNotFitAreNamed) {
  ModelSection section = SmallSparse();
  section.hidden_size = 40;
  EXPECT_THAT(CreateError(section), HasSubstr("hidden_size = 40: must be a multiple of 16"));
  section = SmallSparse();
  section.head_dim = 7;
  EXPECT_THAT(CreateError(section), HasSubstr("head_dim = 7: must be even"));
  section = SmallSparse();
  section.num_key_value_heads = 3;
  EXPECT_THAT(CreateError(section), HasSubstr("num_key_value_heads = 3: must divide"));
  section = SmallSparse();
  section.num_experts_per_tok = 6;
  EXPECT_THAT(CreateError(section), HasSubstr("num_experts_per_tok = 6: must be 1 to 5"));
  section = SmallSparse();
  section.scoring_func = "tanh";
  EXPECT_THAT(CreateError(section), HasSubstr("scoring_func"));
}

TEST_F(ModelTest, ModelTooLargeForTheMachineIsRefused) {
  ModelSection section = SmallSparse();
  section.hidden_size = 1 << 17;
  section.intermediate_size = 1 << 20;
  section.num_hidden_layers = 1 << 10;
  section.n_routed_experts = 0;
  const auto model = Model::Create(section, {kRows, kSequence, true}, compute_);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted) << model.status();
}

}  // namespace
}  // namespace paceline
