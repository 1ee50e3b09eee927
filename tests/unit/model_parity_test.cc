// Our training beside PyTorch's: tests/fixtures/parity/make_fixtures.py says how the numbers were
// made.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "worker/model/model.h"
#include "worker/model/optimizer.h"

namespace paceline {
namespace {

// Relative, on losses, gradient norms and each tensor's gradient.
constexpr double kTolerance = 1e-4;

std::string FixturePath(const std::string& file) {
  const char* source = std::getenv("PACELINE_SOURCE_DIR");
  return std::string(source == nullptr ? "." : source) + "/tests/fixtures/parity/" + file;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// float32 tensors of a safetensors file: a length of 8 bytes, a JSON header, the data.
std::map<std::string, std::vector<float>> ReadTensors(const std::string& path) {
  const std::string bytes = ReadFile(path);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const auto header = nlohmann::json::parse(bytes.substr(8, header_bytes));
  std::map<std::string, std::vector<float>> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    EXPECT_EQ(entry.at("dtype"), "F32") << name;
    const auto begin = entry.at("data_offsets").at(0).get<std::size_t>();
    const auto end = entry.at("data_offsets").at(1).get<std::size_t>();
    std::vector<float>& values = tensors[name];
    values.resize((end - begin) / sizeof(float));
    std::memcpy(values.data(), bytes.data() + 8 + header_bytes + begin, end - begin);
  }
  return tensors;
}

ModelSection ModelOf(const nlohmann::json& json) {
  ModelSection model;
  json.at("vocab_size").get_to(model.vocab_size);
  json.at("hidden_size").get_to(model.hidden_size);
  json.at("num_hidden_layers").get_to(model.num_hidden_layers);
  json.at("num_attention_heads").get_to(model.num_attention_heads);
  json.at("num_key_value_heads").get_to(model.num_key_value_heads);
  json.at("head_dim").get_to(model.head_dim);
  json.at("intermediate_size").get_to(model.intermediate_size);
  json.at("n_routed_experts").get_to(model.n_routed_experts);
  json.at("n_shared_experts").get_to(model.n_shared_experts);
  json.at("num_experts_per_tok").get_to(model.num_experts_per_tok);
  json.at("moe_intermediate_size").get_to(model.moe_intermediate_size);
  json.at("first_k_dense_replace").get_to(model.first_k_dense_replace);
  json.at("scoring_func").get_to(model.scoring_func);
  json.at("norm_topk_prob").get_to(model.norm_topk_prob);
  json.at("routed_scaling_factor").get_to(model.routed_scaling_factor);
  json.at("router_bias_update_rate").get_to(model.router_bias_update_rate);
  json.at("rope_theta").get_to(model.rope_theta);
  json.at("rms_norm_eps").get_to(model.rms_norm_eps);
  json.at("initializer_range").get_to(model.initializer_range);
  json.at("tie_word_embeddings").get_to(model.tie_word_embeddings);
  return model;
}

TrainSection TrainOf(const nlohmann::json& json) {
  TrainSection train;
  json.at("steps").get_to(train.steps);
  json.at("learning_rate").get_to(train.learning_rate);
  json.at("min_learning_rate").get_to(train.min_learning_rate);
  json.at("lr_schedule").get_to(train.lr_schedule);
  json.at("warmup_steps").get_to(train.warmup_steps);
  json.at("weight_decay").get_to(train.weight_decay);
  json.at("adam_beta1").get_to(train.adam_beta1);
  json.at("adam_beta2").get_to(train.adam_beta2);
  json.at("adam_eps").get_to(train.adam_eps);
  json.at("clip_grad_norm").get_to(train.clip_grad_norm);
  return train;
}

class ModelParityTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string name = GetParam();
    fixture_ = nlohmann::json::parse(ReadFile(FixturePath(name + ".json")));
    reference_gradients_ = ReadTensors(FixturePath(name + ".safetensors"));
    section_ = ModelOf(fixture_.at("model"));
    train_ = TrainOf(fixture_.at("train"));
    rows_ = fixture_.at("rows").get<std::int64_t>();
    sequence_ = fixture_.at("sequence").get<std::int64_t>();
    micro_batches_ = fixture_.at("micro_batches").get<std::int64_t>();
    absl::StatusOr<std::unique_ptr<Model>> model = Model::Create(
        section_, {.micro_batch_size = rows_, .sequence_length = sequence_}, compute_);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    const auto seed = fixture_.at("seed").get<std::uint64_t>();
    model_->Initialize(seed);
    SetNorms(seed, fixture_.at("norm_stddev").get<double>());
    exp_avg_.resize(model_->weights().size());
    exp_avg_sq_.resize(model_->weights().size());
  }

  // The fixtures' norms do not start at one, so that a gradient that forgets them is found.
  void SetNorms(std::uint64_t seed, double stddev) {
    for (const Parameter& parameter : model_->parameters()) {
      if (parameter.shape.size() != 1) continue;
      for (std::int64_t i = 0; i < parameter.elements; ++i) {
        model_->weights()[static_cast<std::size_t>(parameter.offset + i)] =
            1.0f + InitialNormal(seed, parameter.name, i, stddev);
      }
    }
  }

  // Mean loss of step `step`; its gradient is in model_->gradients().
  double ForwardBackward(std::int64_t step) {
    const auto stored = fixture_.at("tokens").at(step - 1).get<std::vector<std::int32_t>>();
    const auto tokens_of_step = static_cast<double>(micro_batches_ * rows_ * sequence_);
    model_->ResetExpertTokens();
    double loss = 0;
    for (std::int64_t micro_batch = 0; micro_batch < micro_batches_; ++micro_batch) {
      std::vector<std::int32_t> tokens;
      std::vector<std::int32_t> targets;
      for (std::int64_t row = 0; row < rows_; ++row) {
        const auto* first = stored.data() + (micro_batch * rows_ + row) * (sequence_ + 1);
        tokens.insert(tokens.end(), first, first + sequence_);
        targets.insert(targets.end(), first + 1, first + 1 + sequence_);
      }
      loss += model_->Forward({tokens, targets, rows_, sequence_});
      model_->Backward(static_cast<float>(1.0 / tokens_of_step), /*accumulate=*/micro_batch > 0,
                       [](std::size_t) {});
    }
    return loss / tokens_of_step;
  }

  double GradientNorm() { return std::sqrt(SumOfSquares(compute_, model_->gradients())); }

  void Update(std::int64_t step, double norm) {
    AdamWStep adamw{.step = step,
                    .learning_rate = static_cast<float>(LearningRate(train_, step)),
                    .beta1 = static_cast<float>(train_.adam_beta1),
                    .beta2 = static_cast<float>(train_.adam_beta2),
                    .eps = static_cast<float>(train_.adam_eps),
                    .weight_decay = static_cast<float>(train_.weight_decay)};
    adamw.gradient_scale = static_cast<float>(std::min(1.0, train_.clip_grad_norm / (norm + 1e-6)));
    AdamWOverParameters(compute_, adamw, model_->parameters(), 0, model_->weights(),
                        model_->gradients(), exp_avg_, exp_avg_sq_);
    model_->UpdateRouterBias(static_cast<float>(section_.router_bias_update_rate));
  }

  Stream compute_{Stream::Mode::kInline, "compute"};
  nlohmann::json fixture_;
  std::map<std::string, std::vector<float>> reference_gradients_;
  ModelSection section_;
  TrainSection train_;
  std::int64_t rows_ = 0;
  std::int64_t sequence_ = 0;
  std::int64_t micro_batches_ = 0;
  std::unique_ptr<Model> model_;
  std::vector<float> exp_avg_;
  std::vector<float> exp_avg_sq_;
};

TEST_P(ModelParityTest, GradientsOfTheFirstStepAgreeWithPyTorch) {
  ForwardBackward(1);

  ASSERT_EQ(model_->parameters().size(), reference_gradients_.size());
  for (const Parameter& parameter : model_->parameters()) {
    ASSERT_TRUE(reference_gradients_.contains(parameter.name)) << parameter.name;
    const std::vector<float>& expected = reference_gradients_[parameter.name];
    ASSERT_EQ(static_cast<std::int64_t>(expected.size()), parameter.elements) << parameter.name;
    double error = 0;
    double size = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double actual = model_->gradients()[static_cast<std::size_t>(parameter.offset) + i];
      error += (actual - expected[i]) * (actual - expected[i]);
      size += static_cast<double>(expected[i]) * expected[i];
    }
    EXPECT_GT(size, 0) << parameter.name;
    EXPECT_LE(std::sqrt(error), kTolerance * std::sqrt(size)) << parameter.name;
  }
}

TEST_P(ModelParityTest, TwentyStepsAgreeWithPyTorch) {
  for (std::int64_t step = 1; step <= train_.steps; ++step) {
    const double loss = ForwardBackward(step);
    const double norm = GradientNorm();
    for (const std::string precision : {"", "_float32"}) {
      const auto expected_loss = fixture_.at("losses" + precision).at(step - 1).get<double>();
      const auto expected_norm = fixture_.at("grad_norms" + precision).at(step - 1).get<double>();
      EXPECT_NEAR(loss, expected_loss, kTolerance * expected_loss) << "step " << step;
      EXPECT_NEAR(norm, expected_norm, kTolerance * expected_norm) << "step " << step;
    }
    Update(step, norm);
  }
  const auto& biases = fixture_.at("balancing_biases");
  for (std::size_t i = 0; i < model_->state_buffers().size(); ++i) {
    const StateBuffer& buffer = model_->state_buffers()[i];
    const auto expected = biases.at(i).get<std::vector<float>>();
    EXPECT_THAT(std::vector<float>(buffer.data, buffer.data + expected.size()),
                testing::Pointwise(testing::FloatNear(1e-6f), expected))
        << buffer.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ModelParityTest, testing::Values("dense", "sparse", "softmax"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace paceline
