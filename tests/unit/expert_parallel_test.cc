// Experts spread over ranks (threads over loopback) against the whole model on each rank's batch.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/rank_threads.h"
#include "worker/model/model.h"

namespace paceline {
namespace {

constexpr std::int64_t kRows = 2;
constexpr std::int64_t kSequence = 13;
constexpr int kMicroBatches = 2;
constexpr std::int64_t kExperts = 8;

struct Case {
  int ranks = 2;
  std::int64_t shared_experts = 1;
  std::int64_t top_k = 2;
  bool split_backward = false;
  int crowded_expert = -1;  // where all tokens go, with top_k = 1
};

ModelSection Sparse(const Case& at) {
  ModelSection model;
  model.vocab_size = 37;
  model.hidden_size = 32;
  model.num_hidden_layers = 3;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 10;
  model.intermediate_size = 48;
  model.n_routed_experts = kExperts;
  model.n_shared_experts = at.shared_experts;
  model.num_experts_per_tok = at.top_k;
  model.moe_intermediate_size = 20;
  model.first_k_dense_replace = 1;
  model.scoring_func = "sigmoid";
  model.initializer_range = 0.2;
  return model;
}

struct Batch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;

  operator MicroBatch() const {
    return {tokens, targets, kRows, static_cast<std::int64_t>(tokens.size()) / kRows};
  }
};

// Ranks have micro-batches of different lengths.
Batch MakeBatch(int rank, int micro_batch) {
  Batch batch;
  for (std::int64_t i = 0; i < kRows * (kSequence - rank); ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>((rank * 7 + micro_batch * 5 + i * i) % 37));
    batch.targets.push_back(static_cast<std::int32_t>((rank + micro_batch + 3 * i * i) % 37));
  }
  return batch;
}

using Gradients = std::map<std::string, std::vector<float>>;

struct RankResult {
  std::vector<float> losses;
  Gradients gradients;
  std::vector<std::int64_t> expert_tokens;

  bool operator==(const RankResult&) const = default;
};

// Micro-batches go forward one after the other, then backward.
RankResult Train(Model& model, const Case& at, int rank) {
  model.Initialize(/*seed=*/1);
  if (at.crowded_expert >= 0) {
    for (StateBuffer& buffer : model.state_buffers()) buffer.data[at.crowded_expert] = 100.0f;
  }
  RankResult result;
  for (int m = 0; m < kMicroBatches; ++m) {
    result.losses.push_back(model.Forward(MakeBatch(rank, m), 0, m));
  }
  const auto ignore = [](std::size_t) {};
  for (int m = 0; m < kMicroBatches; ++m) {
    if (at.split_backward) {
      model.BackwardInput(1.0f, 0, m);
    } else {
      model.Backward(1.0f, /*accumulate=*/m > 0, ignore, 0, m);
    }
  }
  for (int m = 0; m < kMicroBatches && at.split_backward; ++m) {
    model.BackwardWeights(/*accumulate=*/m > 0, ignore, 0, m);
  }
  for (const Parameter& parameter : model.parameters()) {
    const auto first = model.gradients().begin() + parameter.offset;
    result.gradients[parameter.name] = {first, first + parameter.elements};
  }
  result.expert_tokens.assign(model.expert_tokens().begin(), model.expert_tokens().end());
  return result;
}

ModelOptions OptionsOf(const Case& at) {
  return {.micro_batch_size = kRows,
          .sequence_length = kSequence,
          .slots = kMicroBatches,
          .split_backward = at.split_backward};
}

RankResult TrainWhole(const Case& at, int rank) {
  Stream compute(Stream::Mode::kInline, "compute");
  return Train(*Model::Create(Sparse(at), OptionsOf(at), compute).value(), at, rank);
}

std::vector<RankResult> TrainSpread(
    const Case& at, const std::vector<std::unique_ptr<Communicator>>& communicators) {
  std::vector<RankResult> results(communicators.size());
  RunRanks(communicators, [&](Communicator& group) {
    Stream compute(Stream::Mode::kInline, "compute");
    Stream communication(Stream::Mode::kThread, "communication");
    const std::int64_t share = kExperts / group.size();
    ModelOptions options = OptionsOf(at);
    options.part = WholeModel(Sparse(at));
    options.part.first_expert = group.rank() * share;
    options.part.end_expert = (group.rank() + 1) * share;
    const std::unique_ptr<Model> model = Model::Create(Sparse(at), options, compute).value();
    model->UseExpertGroup(group, communication);
    results[static_cast<std::size_t>(group.rank())] = Train(*model, at, group.rank());
    EXPECT_TRUE(compute.Synchronize().ok()) << compute.status();
    EXPECT_TRUE(communication.Synchronize().ok()) << communication.status();
    EXPECT_GT(model->expert_wait_seconds(), 0);
  });
  return results;
}

void ExpectClose(const std::vector<float>& actual, const std::vector<double>& expected,
                 const std::string& name) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_LE(std::abs(actual[i] - expected[i]), 1e-5 * largest) << name << " " << i;
  }
}

bool IsExpert(const std::string& name) { return name.find(".mlp.experts.") != std::string::npos; }

void ExpectSpreadEqualsWhole(const Case& at) {
  SCOPED_TRACE(testing::Message() << "ranks " << at.ranks << " shared " << at.shared_experts
                                  << " top_k " << at.top_k << " split " << at.split_backward
                                  << " crowded " << at.crowded_expert);
  const auto communicators = ConnectRanks(at.ranks);
  ASSERT_FALSE(communicators.empty());
  const std::vector<RankResult> spread = TrainSpread(at, communicators);
  EXPECT_EQ(TrainSpread(at, communicators), spread) << "another run gives other bits";

  std::map<std::string, std::vector<double>> expert_sums;
  std::size_t experts_seen = 0;
  for (int rank = 0; rank < at.ranks; ++rank) {
    const RankResult whole = TrainWhole(at, rank);
    const RankResult& own = spread[static_cast<std::size_t>(rank)];
    for (int m = 0; m < kMicroBatches; ++m) {
      const auto i = static_cast<std::size_t>(m);
      EXPECT_LE(std::abs(own.losses[i] - whole.losses[i]), 1e-6 * whole.losses[i]) << rank;
    }
    EXPECT_EQ(own.expert_tokens, whole.expert_tokens);
    for (const auto& [name, gradient] : whole.gradients) {
      if (!IsExpert(name)) {
        ExpectClose(own.gradients.at(name), {gradient.begin(), gradient.end()}, name);
        continue;
      }
      std::vector<double>& sum = expert_sums[name];
      sum.resize(gradient.size());
      for (std::size_t i = 0; i < gradient.size(); ++i) sum[i] += gradient[i];
    }
  }
  for (const RankResult& own : spread) {
    for (const auto& [name, gradient] : own.gradients) {
      if (!IsExpert(name)) continue;
      ExpectClose(gradient, expert_sums.at(name), name);
      ++experts_seen;
    }
  }
  EXPECT_EQ(experts_seen, expert_sums.size());
}

TEST(ExpertParallelTest, SpreadExpertsComputeWhatTheWholeModelDoes) {
  for (const Case& at : std::vector<Case>{
           {.ranks = 2},
           {.ranks = 2, .shared_experts = 0, .top_k = 5},
           {.ranks = 4},
           {.ranks = 4, .top_k = 3, .split_backward = true},
       }) {
    ExpectSpreadEqualsWhole(at);
  }
}

TEST(ExpertParallelTest, OneBackwardGivesTheBitsOfTwo) {
  const auto communicators = ConnectRanks(2);
  ASSERT_FALSE(communicators.empty());
  EXPECT_EQ(TrainSpread({.split_backward = true}, communicators),
            TrainSpread({.split_backward = false}, communicators));
}

TEST(ExpertParallelTest, OneExpertMayGetEveryTokenAndTheOthersNone) {
  for (const Case& at : std::vector<Case>{
           {.ranks = 2, .top_k = 1, .crowded_expert = 5},
           {.ranks = 4, .top_k = 1, .split_backward = true, .crowded_expert = 0},
           {.ranks = 4, .top_k = 1, .crowded_expert = 7},
       }) {
    ExpectSpreadEqualsWhole(at);
  }
}

TEST(ExpertParallelTest, FailedExchangeFailsTheComputeStream) {
  const auto communicators = ConnectRanks(2);
  ASSERT_FALSE(communicators.empty());
  const Case at;
  Stream compute(Stream::Mode::kInline, "compute");
  Stream communication(Stream::Mode::kThread, "communication");
  ModelOptions options = OptionsOf(at);
  options.part = WholeModel(Sparse(at));
  options.part.end_expert = kExperts / 2;
  const std::unique_ptr<Model> model = Model::Create(Sparse(at), options, compute).value();
  model->UseExpertGroup(*communicators[0], communication);
  model->Initialize(/*seed=*/1);
  communicators[0]->Abort("the generation has ended");
  EXPECT_TRUE(std::isnan(model->Forward(MakeBatch(0, 0))));
  EXPECT_EQ(compute.status().code(), absl::StatusCode::kAborted) << compute.status();
}

}  // namespace
}  // namespace paceline
