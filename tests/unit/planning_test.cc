#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "common/planning/goodput.h"
#include "common/planning/planner.h"
#include "common/planning/prediction.h"
#include "common/planning/simulation.h"
#include "common/planning/work.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model/transformer.h"

namespace paceline::planning {
namespace {

using ::testing::HasSubstr;

constexpr double kInstant = 1e300;  // a rate
constexpr double kInfinite = std::numeric_limits<double>::infinity();

ModelSection SmallSparse() {
  ModelSection model;
  model.vocab_size = 256;
  model.hidden_size = 128;
  model.num_hidden_layers = 4;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 32;
  model.intermediate_size = 384;
  model.n_routed_experts = 8;
  model.n_shared_experts = 1;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 96;
  model.first_k_dense_replace = 1;
  return model;
}

RunFile SmallRun() {
  RunFile run_file;
  run_file.model = SmallSparse();
  run_file.train.sequence_length = 256;
  run_file.train.global_batch_size = 64;
  run_file.train.micro_batch_size = 2;
  run_file.launch.nodes = 2;
  run_file.launch.slots_per_node = 4;
  return run_file;
}

CostRates Rates(double flops, double memory, double link) {
  const LinkRate rate{0, link};
  return {.matrix_flops = flops,
          .expert_flops = flops,
          .head_flops = flops,
          .attention_forward_flops = flops,
          .attention_backward_flops = flops,
          .memory_bytes = memory,
          .accumulation_bytes = memory,
          .optimizer_bytes = memory,
          .overlap = 1,
          .inside_node = rate,
          .between_nodes = rate,
          .reduction_inside_node = rate,
          .reduction_between_nodes = rate,
          .exchange_inside_node = rate,
          .exchange_between_nodes = rate};
}

Machine SmallMachine() {
  Machine machine;
  machine.nodes = 2;
  machine.slots_per_node = 4;
  machine.rates = Rates(1e12, 1e11, 1e10);
  return machine;
}

TEST(WorkTest, ParametersAreThoseOfTheTensors) {
  for (const int expert : {1, 2, 8}) {
    for (const LayerRange& range : {LayerRange{0, 1}, {0, 4}, {1, 3}, {3, 4}}) {
      ModelPart part{.segments = {range}, .first_expert = 0, .end_expert = 8 / expert};
      ParameterCounts tensors;
      for (const TensorShape& tensor : ModelTensors(SmallSparse(), part)) {
        const bool routed = tensor.name.find(".mlp.experts.") != std::string::npos;
        (routed ? tensors.routed : tensors.replicated) += static_cast<double>(tensor.elements());
      }
      const ParameterCounts counts = ParametersOf(SmallSparse(), range, expert);
      EXPECT_EQ(counts.replicated, tensors.replicated);
      EXPECT_EQ(counts.routed, tensors.routed);
    }
  }
}

TEST(WorkTest, FlopsAreThoseOfTheModelShape) {
  const ModelSection model = SmallSparse();
  const MicroBatchShape batch{2, 256};
  Machine machine;
  machine.rates = Rates(1, kInstant, kInstant);
  // The model's shape counts a backward of attention as twice the forward; five products over
  // two are what kernels do.
  machine.rates->attention_backward_flops = 1.25;
  for (const std::int64_t layer : {0, 1, 3}) {
    const PassSeconds seconds =
        SecondsOfLayer(model, layer, batch, 1, machine, /*split_backward=*/false);
    EXPECT_NEAR(seconds.total() / (batch.tokens() * LayerFlopsPerToken(model, layer, 256)), 1,
                1e-12);
  }
  const PassSeconds ends = SecondsOfEnds(model, {0, 4}, batch, machine);
  EXPECT_NEAR(ends.total() / (batch.tokens() * HeadFlopsPerToken(model)), 1, 1e-12);
}

// Two ranks share the experts; a slow link exposes all that the products do not hide.
TEST(WorkTest, ExchangeIsHiddenByWhatTheWorkerComputesMeanwhile) {
  const ModelSection model = SmallSparse();
  const MicroBatchShape batch{2, 256};
  const double hidden = static_cast<double>(model.hidden_size);
  const double intermediate = static_cast<double>(model.moe_intermediate_size);
  Machine machine;
  machine.slots_per_node = 2;
  machine.rates = Rates(1e12, kInstant, 1e6);
  const double link = 2 * batch.tokens() * (model.num_experts_per_tok / 2.0) * hidden * 4 / 1e6;
  const double expert = batch.tokens() * 6 * hidden * intermediate / 1e12;
  const double shared = expert * static_cast<double>(model.n_shared_experts);
  const double routed = expert * static_cast<double>(model.num_experts_per_tok);
  const auto seconds = [&](bool split_backward) {
    return SecondsOfLayer(model, 3, batch, 2, machine, split_backward);
  };
  ASSERT_GT(link, 10 * (shared + routed));
  EXPECT_NEAR(seconds(true).exchange_forward, link - shared, 1e-9 * link);
  EXPECT_NEAR(seconds(true).exchange_backward, link - shared, 1e-9 * link);
  EXPECT_NEAR(seconds(false).exchange_backward, link - 2 * shared - routed, 1e-9 * link);
  machine.rates->overlap = 0;
  EXPECT_NEAR(seconds(false).exchange_backward, link, 1e-9 * link);
  machine.rates = Rates(1e3, kInstant, 1e6);
  EXPECT_EQ(seconds(false).exchange_backward, 0);
}

// The worker's arena is the measure: its code lays out what the formula counts.
TEST(WorkTest, ActivationsAreThoseOfTheWorker) {
  Stream stream(Stream::Mode::kInline, "compute");
  ModelSection dense = SmallSparse();
  dense.n_routed_experts = 0;
  for (const ModelSection& model : {SmallSparse(), dense}) {
    for (const std::int64_t rows : {1, 4}) {
      const Transformer measured(model,
                                 {.micro_batch_size = rows,
                                  .sequence_length = 256,
                                  .training = true,
                                  .part = WholeModel(model)},
                                 stream);
      const KeptBytes kept;
      const double parameters = static_cast<double>(SizeOfModel(model).parameters);
      const double counted = 8 * parameters + SavedBytes(model, {0, 4}, {rows, 256}, 1, kept) +
                             ScratchBytes(model, {0, 4}, {rows, 256}, 1, kept);
      EXPECT_NEAR(counted / static_cast<double>(measured.arena_bytes()), 1, 0.05);
    }
  }
}

TEST(WorkTest, ABackwardInTwoPassesKeepsWhatTheWorkerDoes) {
  Stream stream(Stream::Mode::kInline, "compute");
  ModelSection dense = SmallSparse();
  dense.n_routed_experts = 0;
  for (const ModelSection& model : {SmallSparse(), dense}) {
    const auto arena = [&](bool split, int slots) {
      const Transformer measured(model,
                                 {.micro_batch_size = 2,
                                  .sequence_length = 256,
                                  .training = true,
                                  .part = WholeModel(model),
                                  .slots = slots,
                                  .split_backward = split},
                                 stream);
      return static_cast<double>(measured.arena_bytes());
    };
    const KeptBytes kept;
    const double saved = SavedBytes(model, {0, 4}, {2, 256}, 1, kept);
    const double between = BetweenBytes(model, {0, 4}, {2, 256}, 1, kept);
    EXPECT_NEAR(saved / (arena(false, 2) - arena(false, 1)), 1, 0.05);
    EXPECT_NEAR((saved + between) / (arena(true, 2) - arena(true, 1)), 1, 0.05);
  }
}

TEST(WorkTest, AStagesMemoryIsWhatItsRankTakes) {
  Stream stream(Stream::Mode::kInline, "compute");
  RunFile run_file = SmallRun();
  run_file.launch.nodes = 1;
  run_file.launch.slots_per_node = 2;
  run_file.layout.pipeline = 2;
  const Candidate given = GivenIn(run_file);
  for (const int stage : {0, 1}) {
    const RankMemory memory = MemoryOf(run_file, given, SmallMachine(), stage);
    ModelPart part = WholeModel(run_file.model);
    part.segments = {stage == 0 ? LayerRange{0, 2} : LayerRange{2, 4}};
    const Transformer measured(
        run_file.model,
        {.micro_batch_size = 2, .sequence_length = 256, .part = part, .slots = memory.slots},
        stream);
    const double counted = memory.weights + memory.gradients + memory.activations + memory.scratch;
    EXPECT_NEAR(counted / static_cast<double>(measured.arena_bytes()), 1, 0.05) << stage;
    // Where there is a stage before it, an input more than slots.
    const double slots = memory.slots * SavedBytes(run_file.model, part.segments[0], {2, 256}, 1,
                                                   SmallMachine().kept);
    EXPECT_DOUBLE_EQ(memory.activations - slots, stage * 2 * 256 * 128 * 4.0);
  }
}

TEST(WorkTest, AnExchangeSendsEachTokenToItsExperts) {
  const ModelSection model = SmallSparse();  // 2 of 8 experts a token
  Machine machine = SmallMachine();
  const double row = 128 * 4 / 1e10;  // seconds
  EXPECT_EQ(ExchangeSeconds(model, 100, 1, 4, machine), 0);
  // Inside a node: all rows but those for oneself.
  EXPECT_NEAR(ExchangeSeconds(model, 100, 4, 4, machine), 100 * 2 * 0.75 * row, 1e-12);
  // Over two nodes: those for the other node.
  EXPECT_NEAR(ExchangeSeconds(model, 100, 8, 4, machine), 100 * 2 * 0.5 * row, 1e-12);
  // One copy for each node that a token reaches: both, unless its experts lie on one.
  machine.one_copy_a_node = true;
  EXPECT_NEAR(ExchangeSeconds(model, 100, 8, 4, machine), 100 * 2 * (1 - 0.25) * row, 1e-12);
  machine.nodes_per_token_max = 1;
  EXPECT_NEAR(ExchangeSeconds(model, 100, 8, 4, machine), 100 * row, 1e-12);
}

std::vector<StageTimes> EqualStages(int stages, int segments, const PassSeconds& seconds) {
  StageTimes times;
  times.segments.assign(static_cast<std::size_t>(segments), seconds);
  times.reduction.assign(static_cast<std::size_t>(segments), 0);
  times.reduction_buckets.assign(static_cast<std::size_t>(segments), 1);
  return std::vector<StageTimes>(static_cast<std::size_t>(stages), times);
}

TEST(SimulationTest, TheBubbleIsThatOfTheFormulas) {
  constexpr int kMicroBatches = 32;
  const PassSeconds seconds{.forward = 6, .backward_input = 6, .backward_weights = 5};
  for (const int stages : {2, 4, 8}) {
    const auto bubble_of = [&](const std::string& schedule, int segments) {
      const PipelineShape shape{schedule, stages, segments, kMicroBatches};
      const StepSimulation step = SimulateStep(shape, EqualStages(stages, segments, seconds), 1);
      EXPECT_DOUBLE_EQ(step.seconds - step.stages[0].bubble, kMicroBatches * segments * 17);
      return step.stages[0].bubble;
    };
    EXPECT_DOUBLE_EQ(bubble_of("1f1b", 1), (stages - 1) * 17);
    EXPECT_DOUBLE_EQ(bubble_of("zero-bubble", 1), (stages - 1) * (17 - 2 * 5));
    // The segment's times are those of the stage divided by V.
    EXPECT_DOUBLE_EQ(bubble_of("interleaved", 2), (stages - 1) * 17);
  }
}

TEST(SimulationTest, PartsAddUpToTheStep) {
  const RunFile run_file = SmallRun();
  for (const double overlap : {0.0, 0.5, 1.0}) {
    Machine machine = SmallMachine();
    machine.rates->overlap = overlap;
    for (const char* schedule : {"1f1b", "zero-bubble", "interleaved"}) {
      const Candidate candidate{.layout = {.pipeline = 2,
                                           .data = 4,
                                           .expert = 2,
                                           .virtual_stages = schedule[0] == 'i' ? 2 : 1,
                                           .schedule = schedule,
                                           .shard_optimizer = true},
                                .micro_batch_size = 2};
      ASSERT_TRUE(CheckLayout(run_file, candidate, machine).ok());
      const StepSimulation step = Predict(run_file, candidate, machine);
      for (const StageParts& parts : step.stages) {
        EXPECT_NEAR(parts.total() / step.seconds, 1, 1e-12);
        EXPECT_GE(parts.bubble, -1e-12 * step.seconds);
      }
      EXPECT_NEAR(MeanOf(step.stages).total() / step.seconds, 1, 1e-12);
    }
  }
}

TEST(SimulationTest, LongStepsAreWhatSimulatingAllOfThemGives) {
  RunFile run_file = SmallRun();
  run_file.train.global_batch_size = 4 * 2 * 400;
  const Machine machine = SmallMachine();
  for (const char* schedule : {"1f1b", "zero-bubble", "interleaved"}) {
    const Candidate candidate{.layout = {.pipeline = 2,
                                         .data = 4,
                                         .expert = 2,
                                         .virtual_stages = schedule[0] == 'i' ? 2 : 1,
                                         .schedule = schedule},
                              .micro_batch_size = 2};
    const StepSimulation predicted = Predict(run_file, candidate, machine);
    const StepSimulation whole =
        SimulateStep({schedule, 2, candidate.layout.virtual_stages, 400},
                     TimesOfStages(run_file, candidate, machine), machine.rates->overlap);
    EXPECT_NEAR(predicted.seconds / whole.seconds, 1, 1e-9);
    for (std::size_t stage = 0; stage < 2; ++stage) {
      EXPECT_NEAR(predicted.stages[stage].bubble, whole.stages[stage].bubble, 1e-9 * whole.seconds);
    }
  }
}

TEST(SimulationTest, ReductionHidesBehindTheLastBackward) {
  std::vector<StageTimes> stages = EqualStages(1, 1, {.forward = 1, .backward_input = 8});
  stages[0].reduction = {4};
  stages[0].reduction_buckets = {4};
  // Four buckets of a second each, ready after 2, 4, 6 and 8 seconds: the last one is left.
  EXPECT_DOUBLE_EQ(SimulateStep({"1f1b", 1, 1, 3}, stages, 1).stages[0].gradients, 1);
  // Without overlap all of it is.
  EXPECT_DOUBLE_EQ(SimulateStep({"1f1b", 1, 1, 3}, stages, 0).stages[0].gradients, 4);
}

TEST(SimulationTest, AMessageTakesTimeOfBothItsEndsWhereTheyMoveIt) {
  std::vector<StageTimes> stages = EqualStages(2, 1, {.forward = 10, .backward_input = 10});
  for (StageTimes& times : stages) times.send_forward = times.send_backward = 1;
  // F0 sent at 11, F1 at 22. The other stage: F0 11..21, B0 ..31 and sent by 32; F1, which came
  // while it computed, 33..43, B1 ..53, sent by 54. Here B0 32..42, B1 54..64.
  const StepSimulation step = SimulateStep({"1f1b", 2, 1, 2}, stages, 0);
  EXPECT_DOUBLE_EQ(step.seconds, 64);
  EXPECT_DOUBLE_EQ(step.stages[0].send, 2);
  EXPECT_DOUBLE_EQ(step.stages[1].send, 3);
  EXPECT_DOUBLE_EQ(step.stages[1].bubble, 64 - 40 - 3);
  // Where a link moves it, F1 and what follows it come a second earlier each.
  EXPECT_DOUBLE_EQ(SimulateStep({"1f1b", 2, 1, 2}, stages, 1).seconds, 62);
}

// Two stages that wait for each other at every pass take as long as the slower one of each: with
// times exp(s z), of z independent and normal, the larger of two is by 2 Phi(s / sqrt 2) above the
// mean.
TEST(SimulationTest, UnevenPassesMakeStagesWait) {
  std::vector<StageTimes> stages = EqualStages(1, 1, {.forward = 1, .backward_input = 2});
  const auto mean_of = [](double spread) { return std::exp(spread * spread / 2); };
  stages[0].spread.pass = 0.2;
  // One stage waits for nobody, and takes the mean of its passes.
  EXPECT_NEAR(SimulateStep({"1f1b", 1, 1, 400}, stages, 1).seconds / 1200, mean_of(0.2), 0.003);

  stages = EqualStages(2, 1, {.forward = 1, .backward_input = 1});
  const double even = SimulateStep({"1f1b", 2, 1, 400}, stages, 1).seconds;
  double former = even;
  for (const double spread : {0.05, 0.1, 0.2}) {
    for (StageTimes& times : stages) times.spread.pass = spread;
    const StepSimulation step = SimulateStep({"1f1b", 2, 1, 400}, stages, 1);
    EXPECT_GT(step.seconds, former * mean_of(spread / 2));
    // Never above both stages' larger pass each time.
    const double larger = mean_of(spread) * std::erfc(-spread / 2);
    EXPECT_LT(step.seconds, 1.01 * even * larger);
    former = step.seconds;
    for (const StageParts& parts : step.stages) {
      EXPECT_NEAR(parts.total() / step.seconds, 1, 1e-12);
    }
    EXPECT_EQ(step.seconds, SimulateStep({"1f1b", 2, 1, 400}, stages, 1).seconds);
  }
}

// A speed that stays through a step: two stages go as the slower one of them, but for the ends of
// the step; so do two copies of a stage.
TEST(SimulationTest, UnevenRanksMakeOthersWait) {
  constexpr double kSpread = 0.2;
  const double mean = std::exp(kSpread * kSpread / 2);
  const double larger = mean * std::erfc(-kSpread / 2);
  std::vector<StageTimes> stages = EqualStages(1, 1, {.forward = 1, .backward_input = 2});
  stages[0].spread.step = kSpread;
  // The mean of 256 draws is off by 0.2 / 16 at one standard deviation.
  const StepSimulation one = SimulateStep({"1f1b", 1, 1, 10}, stages, 1);
  EXPECT_NEAR(one.seconds / 30, mean, 0.03);
  EXPECT_NEAR(one.stages[0].bubble, 0, 1e-9);
  stages[0].copies = 2;
  EXPECT_NEAR(SimulateStep({"1f1b", 1, 1, 10}, stages, 1).seconds / 30, larger, 0.03);

  stages = EqualStages(2, 1, {.forward = 1, .backward_input = 1});
  const double even = SimulateStep({"1f1b", 2, 1, 400}, stages, 1).seconds;
  for (StageTimes& times : stages) times.spread.step = kSpread;
  const StepSimulation two = SimulateStep({"1f1b", 2, 1, 400}, stages, 1);
  EXPECT_NEAR(two.seconds / even, larger, 0.03);
  // What a pipeline of even passes would wait is 1 / 401 of the step.
  EXPECT_NEAR(MeanOf(two.stages).bubble / two.seconds, 1 - mean / larger, 0.02);
}

TEST(SimulationTest, LongStepsAreDrawnLessOften) {
  EXPECT_EQ(DrawsOf({"1f1b", 2, 1, 400}), 256);  // 1,600 passes
  EXPECT_EQ(DrawsOf({"1f1b", 16, 1, 128}), 256);
  EXPECT_EQ(DrawsOf({"1f1b", 16, 1, 256}), 128);
  EXPECT_EQ(DrawsOf({"interleaved", 16, 4, 1024}), 32);
}

// Where speeds alone are drawn, each draw of a long step goes on as it began; so does their mean,
// if the two steps that it is told from were drawn equally often.
TEST(SimulationTest, LongStepsOfUnevenRanksGoOnAsTheyBegan) {
  RunFile run_file = SmallRun();
  run_file.model.num_hidden_layers = 16;
  run_file.train.global_batch_size = 400;
  Machine machine = SmallMachine();
  machine.rates->spread.step = 0.2;
  const Candidate candidate{.layout = {.pipeline = 16}};
  const std::vector<StageTimes> times = TimesOfStages(run_file, candidate, machine);
  const StepSimulation whole =
      SimulateStep({"1f1b", 16, 1, 400}, times, 1, /*with_timeline=*/false, /*draws=*/128);
  EXPECT_NEAR(Predict(run_file, candidate, machine).seconds / whole.seconds, 1, 1e-3);
}

TEST(SimulationTest, ShortSchedulesHaveAPicture) {
  const std::vector<StageTimes> stages =
      EqualStages(2, 1, {.forward = 1, .backward_input = 1, .backward_weights = 1});
  const StepSimulation step = SimulateStep({"1f1b", 2, 1, 2}, stages, 1, /*with_timeline=*/true);
  EXPECT_EQ(TimelinePicture(step, 80), "0011....aaaa..bbbb\n..00aaaa11bbbb....\n");
  EXPECT_EQ(TimelinePicture(step, 8), "");
}

TEST(PlannerTest, TheBestIsNoSlowerThanAnyLayoutByHand) {
  const RunFile run_file = SmallRun();
  const Machine machine = SmallMachine();
  const absl::StatusOr<Choices> choices = ChooseLayout(run_file, machine);
  ASSERT_TRUE(choices.ok()) << choices.status();
  ASSERT_EQ(choices->best.size(), 3u);
  for (const int pipeline : {1, 2, 4}) {
    for (const int expert : {1, 2}) {
      const Candidate candidate{
          .layout = {.pipeline = pipeline, .data = 8 / pipeline, .expert = expert},
          .micro_batch_size = 2};
      ASSERT_TRUE(CheckLayout(run_file, candidate, machine).ok());
      EXPECT_LE(choices->best[0].step.seconds, Predict(run_file, candidate, machine).seconds);
    }
  }
  EXPECT_LE(choices->best[0].step.seconds, choices->best[1].step.seconds);
  EXPECT_THAT(choices->best[1].why, HasSubstr("computes"));
}

TEST(PlannerTest, EqualQuestionsGetEqualAnswers) {
  const absl::StatusOr<Choices> one = ChooseLayout(SmallRun(), SmallMachine());
  const absl::StatusOr<Choices> two = ChooseLayout(SmallRun(), SmallMachine());
  ASSERT_TRUE(one.ok() && two.ok());
  for (std::size_t i = 0; i < one->best.size(); ++i) {
    EXPECT_EQ(TextOf(one->best[i].candidate), TextOf(two->best[i].candidate));
  }
}

TEST(PlannerTest, WhatDoesNotFitIsRefusedWithTheNearestThatDoes) {
  RunFile run_file = SmallRun();
  Machine machine = SmallMachine();
  const Candidate given = GivenIn(run_file);
  const double needed = MemoryOf(run_file, given, machine, 0).total();
  machine.memory_bytes = 0.8 * needed;
  const absl::Status refused = CheckGiven(run_file, machine).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("a rank of stage 0 needs"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the nearest that fits: pipeline 1"));

  machine.memory_bytes = 1000;
  EXPECT_THAT(std::string(CheckGiven(run_file, machine).status().message()),
              HasSubstr("no layout on these machines fits"));
  EXPECT_EQ(ChooseLayout(run_file, machine).status().code(), absl::StatusCode::kOutOfRange);
  run_file.train.global_batch_size = 3;
  EXPECT_EQ(ChooseLayout(run_file, machine).status().code(), absl::StatusCode::kInvalidArgument);
}

// Layers are split by FLOPs: the stages before and behind the longest one have one layer each.
TEST(PlannerTest, AStageInTheMiddleMayBeTheFullest) {
  RunFile run_file = SmallRun();
  run_file.model.n_routed_experts = 0;
  run_file.model.num_hidden_layers = 5;
  run_file.train.sequence_length = 32;
  Machine machine = SmallMachine();
  const Candidate smallest{.layout = {.pipeline = 4, .data = 2, .shard_optimizer = true}};
  const std::vector<RankMemory> stages = MemoryOfStages(run_file, smallest, machine);
  ASSERT_EQ(FullestOf(stages), 2u);
  machine.memory_bytes = stages[2].total();
  const absl::StatusOr<Choices> fits = ChooseLayout(run_file, machine);
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ(fits->fitting, 1u);
  EXPECT_EQ(TextOf(fits->best[0].candidate), TextOf(smallest));

  machine.memory_bytes -= 1;
  const absl::Status refused = ChooseLayout(run_file, machine).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("the nearest, " + TextOf(smallest) + ": a rank of stage 2 needs"));
}

TEST(PredictionTest, WhatIsNoNumberDoesNotFit) {
  RunFile run_file = SmallRun();
  run_file.model.intermediate_size = 0;
  Machine machine = SmallMachine();
  machine.memory_bytes = 1e9;
  machine.kept.expert_activation = kInfinite;  // times no dense width
  const Candidate candidate{.layout = {.pipeline = 4, .data = 2}};
  const std::vector<RankMemory> stages = MemoryOfStages(run_file, candidate, machine);
  ASSERT_TRUE(std::isnan(stages[0].total()) && !std::isnan(stages[1].total()));
  EXPECT_THAT(std::string(CheckMemory(run_file, candidate, machine).message()),
              HasSubstr("a rank of stage 0 needs"));
  std::vector<RankMemory> others(3);
  others[1].weights = std::nan("");
  EXPECT_EQ(FullestOf(others), 1u);
}

// A group is inside a node where all its ranks are; of a stage's expert-data groups the slowest one
// counts.
TEST(PredictionTest, AGroupInOneNodeReducesInsideIt) {
  const RunFile run_file = SmallRun();
  Machine machine = SmallMachine();
  machine.rates->reduction_inside_node = {0, 1e11};
  const auto rate = [&](const std::vector<int>& group) {
    const bool inside =
        group.front() / machine.slots_per_node == group.back() / machine.slots_per_node;
    return inside ? 1e11 : 1e10;
  };
  for (const int slots : {2, 3, 4, 6, 8}) {
    machine.slots_per_node = slots;
    for (const int pipeline : {1, 2}) {
      for (const int expert : {1, 2, 4}) {
        const Candidate candidate{
            .layout = {.pipeline = pipeline, .data = 8 / pipeline, .expert = expert}};
        const ParallelLayout& layout = candidate.layout;
        const std::vector<StageTimes> times = TimesOfStages(run_file, candidate, machine);
        for (int stage = 0; stage < pipeline; ++stage) {
          SCOPED_TRACE(TextOf(candidate) + ", stage " + std::to_string(stage));
          double routed_rate = 1e11;
          for (int data = 0; data < expert; ++data) {
            const int rank = RankAt(layout, stage, data);
            routed_rate = std::min(routed_rate, rate(ExpertDataGroup(layout, rank)));
          }
          const double replicated_rate = rate(DataGroup(layout, RankAt(layout, stage, 0)));
          const int first = 4 / pipeline * stage;
          const ParameterCounts counts =
              ParametersOf(run_file.model, {first, first + 4 / pipeline}, expert);
          const auto ring = [](int ranks) { return 8 * (ranks - 1.0) / ranks; };
          EXPECT_DOUBLE_EQ(times[static_cast<std::size_t>(stage)].reduction[0],
                           counts.replicated * ring(layout.data) / replicated_rate +
                               counts.routed * ring(layout.expert_data()) / routed_rate);
        }
      }
    }
  }
}

TEST(PlannerTest, ShardingTheOptimizerDividesItsMemory) {
  const RunFile run_file = SmallRun();
  Candidate candidate = GivenIn(run_file);
  candidate.layout.expert = 2;
  const RankMemory whole = MemoryOf(run_file, candidate, SmallMachine(), 0);
  candidate.layout.shard_optimizer = true;
  const RankMemory sharded = MemoryOf(run_file, candidate, SmallMachine(), 0);
  const ParameterCounts counts = ParametersOf(run_file.model, {0, 4}, 2);
  EXPECT_EQ(whole.moments, 8 * (counts.replicated + counts.routed));
  EXPECT_EQ(sharded.moments, 8 * (counts.replicated / 8 + counts.routed / 4));
  EXPECT_EQ(sharded.weights, whole.weights);
}

TEST(GoodputTest, SimulationAgreesWithTheFormulas) {
  const FailureModel model{.mtbf_s = 10'000, .stall_s = 20, .write_s = 20, .restart_s = 100};
  EXPECT_NEAR(YoungInterval(model), std::sqrt(2 * 20 * 10'000.0), 1e-9);
  const BestInterval best = SimulatedBestInterval(model, /*seed=*/7);
  // The optimum is flat: a factor of 2^(1/2) to either side costs little.
  EXPECT_LT(std::abs(std::log2(best.seconds / DalyInterval(model))), 0.76);
  EXPECT_NEAR(SimulatedGoodput(model, DalyInterval(model), 7) / best.goodput, 1, 0.005);
  // Lost to first order: the stalls, half an interval and the restart a failure.
  const double interval = DalyInterval(model);
  const double lost = 20 / interval + (interval / 2 + 20 + 100) / 10'000;
  EXPECT_NEAR(SimulatedGoodput(model, interval, 7), 1 - lost, 0.01);
  EXPECT_EQ(SimulatedGoodput(model, interval, 7), SimulatedGoodput(model, interval, 7));
}

// What was published of the training run (arXiv:2412.19437 and arXiv:2505.09343) is compared with
// what the planner says from the recipes, whose figures come from elsewhere.
class DeepSeekV3Test : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* source = std::getenv("PACELINE_SOURCE_DIR");
    ASSERT_NE(source, nullptr);
    const std::string recipes = std::string(source) + "/launch/recipes/";
    absl::StatusOr<RunFile> run_file = LoadRunFile(recipes + "deepseek-v3.toml", {});
    ASSERT_TRUE(run_file.ok()) << run_file.status();
    run_file_ = *std::move(run_file);
    const absl::StatusOr<ClusterFile> cluster =
        LoadClusterFile(recipes + "clusters/deepseek-v3-h800.toml");
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    machine_ = MachineOf(*cluster, run_file_);
  }

  RunFile run_file_;
  Machine machine_;
};

TEST_F(DeepSeekV3Test, TheModelIsTheModel) {
  const ModelSize size = SizeOfModel(run_file_.model);
  EXPECT_NEAR(static_cast<double>(size.parameters) / 671e9, 1, 0.01);
  EXPECT_NEAR(static_cast<double>(size.active_parameters) / 37e9, 1, 0.06);
}

TEST_F(DeepSeekV3Test, StepAndDeviceHoursAreWithin15PercentOfThePublished) {
  const absl::StatusOr<Choice> given = CheckGiven(run_file_, machine_);
  ASSERT_TRUE(given.ok()) << given.status();
  const ParallelLayout& layout = given->candidate.layout;
  EXPECT_EQ(layout.pipeline, 16);
  EXPECT_EQ(layout.expert, 64);
  EXPECT_TRUE(layout.shard_optimizer);
  EXPECT_EQ(layout.world_size(), 2048);
  EXPECT_NEAR(given->step.seconds, 19.926, 0.15 * 19.926);
  const double tokens_per_step = 15360.0 * 4096;
  const double hours = 14.8e12 / tokens_per_step * given->step.seconds * 2048 / 3600;
  EXPECT_NEAR(hours, 2.664e6, 0.15 * 2.664e6);
}

}  // namespace
}  // namespace paceline::planning
