#include "worker/trainer/trainer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>

#include "tests/support/in_process_ranks.h"
#include "tests/support/temp_folder.h"
#include "worker/trainer/checkpointer.h"

namespace paceline {
namespace {

void ExpectAllOk(const std::vector<RankOutcome>& outcomes) {
  for (const RankOutcome& outcome : outcomes) ASSERT_TRUE(outcome.status.ok()) << outcome.status;
}

TEST(TrainerTest, ExactLossesAreBitEqualForOneTwoAndFourRanks) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  run.train.steps = 100;
  const auto one = TrainInProcess(run, 1, {});
  ExpectAllOk(one);
  const std::vector<double> expected = one[0].losses();
  ASSERT_EQ(expected.size(), 100u);
  EXPECT_LT(expected.back(), 0.7 * expected.front());
  for (const int ranks : {2, 4}) {
    const auto outcomes = TrainInProcess(run, ranks, {});
    ExpectAllOk(outcomes);
    EXPECT_EQ(outcomes[0].losses(), expected) << ranks << " ranks";
    for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.weights, one[0].weights);
  }
}

TEST(TrainerTest, ExactHoldsWhereBucketsDoNotDivideByTheRanks) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  run.train.global_batch_size = 12;
  const auto one = TrainInProcess(run, 1, {});
  const auto three = TrainInProcess(run, 3, {});
  ExpectAllOk(one);
  ExpectAllOk(three);
  EXPECT_EQ(three[0].losses(), one[0].losses());
}

TEST(TrainerTest, FastLossesAgreeWithExactOnesToRounding) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  const auto exact = TrainInProcess(run, 2, {});
  run.train.reduction = "fast";
  const auto fast = TrainInProcess(run, 2, {});
  ExpectAllOk(exact);
  ExpectAllOk(fast);
  EXPECT_EQ(fast[0].weights, fast[1].weights);
  for (std::size_t i = 0; i < exact[0].losses().size(); ++i) {
    EXPECT_NEAR(fast[0].losses()[i] / exact[0].losses()[i], 1.0, 1e-4) << "step " << i + 1;
  }
}

TEST(TrainerTest, APartOfAnAbortedGenerationIsGivenUpAndNotReported) {
  const TempFolder folder;
  int messages = 0;
  bool aborted = false;
  Checkpointer checkpointer(
      0, {}, folder.path(), [&](const v1::WorkerMessage&) { ++messages; }, [&] { return aborted; });
  const std::vector<float> values(1000);
  const SliceView slice = {{"w", "F32", {1000}, {0}, {1000}, ""}, values.data()};
  v1::DataPosition position;
  position.set_step(1);
  checkpointer.Write(position, v1::CHECKPOINT_REASON_INTERVAL, {&slice, 1}, {});
  checkpointer.Flush();
  EXPECT_EQ(messages, 1);
  aborted = true;
  position.set_step(2);
  checkpointer.Write(position, v1::CHECKPOINT_REASON_END, {&slice, 1}, {});
  checkpointer.Flush();
  EXPECT_EQ(messages, 1);
}

TEST(TrainerTest, ACheckpointResumesAtAnotherNumberOfRanksBitForBit) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  run.checkpoint.interval_steps = 8;
  const auto whole = TrainInProcess(run, 2, {});
  ExpectAllOk(whole);
  const std::string checkpoint = CommitCheckpoint(run, whole, 8);

  const auto resumed = TrainInProcess(run, 4, {.checkpoint = checkpoint, .start_step = 8});

  ExpectAllOk(resumed);
  const std::vector<double> expected = whole[0].losses();
  EXPECT_EQ(resumed[0].losses(), std::vector<double>(expected.begin() + 8, expected.end()));
  EXPECT_EQ(resumed[3].weights, whole[0].weights);
}

TEST(TrainerTest, AStopThatOneRankHearsStopsAllAtOneStepWithACheckpoint) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  run.train.steps = 1'000'000;
  const auto outcomes = TrainInProcess(
      run, 2,
      {.on_message = [](int rank, const v1::WorkerMessage& message, GenerationControl& control) {
        if (rank == 0 && message.has_step() && message.step().step() == 5) control.RequestStop({});
      }});
  ExpectAllOk(outcomes);
  EXPECT_EQ(outcomes[0].finished_step(), 6);
  EXPECT_EQ(outcomes[1].finished_step(), 6);
  ASSERT_EQ(outcomes[0].parts(6).size(), 1u);
  EXPECT_EQ(outcomes[0].parts(6)[0].reason(), v1::CHECKPOINT_REASON_STOP);
}

TEST(TrainerTest, NoStepBeginsOutsideItsWindow) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  std::atomic<int> asked_at_the_edge{0};
  const auto outcomes = TrainInProcess(
      run, 1,
      {.granted_until = 5,
       .on_message = [&](int, const v1::WorkerMessage& message, GenerationControl& control) {
         static thread_local std::int64_t completed = 0;
         if (message.has_step()) completed = message.step().step();
         if (!message.has_window_request() || completed < 5) return;
         ++asked_at_the_edge;
         v1::Window window;
         window.set_first_step(5);
         window.set_end_step(20);
         control.Grant(window);
       }});
  ExpectAllOk(outcomes);
  EXPECT_EQ(outcomes[0].finished_step(), 20);
  EXPECT_GE(asked_at_the_edge, 1);
}

TEST(TrainerTest, AWindowWithAGapIsNotUsed) {
  v1::RankStart start;
  GenerationControl control(start);
  v1::Window window;
  window.set_first_step(3);
  window.set_end_step(9);
  control.Grant(window);
  EXPECT_EQ(control.granted_until(), 0);
}

TEST(TrainerTest, ANonFiniteGradientNamesRankStepAndTensor) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  run.train.learning_rate = 1e30;
  run.train.min_learning_rate = 1e30;
  run.train.lr_schedule = "constant";
  run.train.warmup_steps = 0;
  const auto outcomes = TrainInProcess(run, 2, {});
  for (const RankOutcome& outcome : outcomes) {
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDataLoss) << outcome.status;
    EXPECT_NE(outcome.status.message().find(": rank 0, micro-batch "), std::string::npos)
        << outcome.status;
    EXPECT_NE(outcome.status.message().find("is not finite"), std::string::npos);
  }
  EXPECT_EQ(outcomes[0].status, outcomes[1].status);
}

TEST(TrainerTest, ANonFiniteStepIsSkippedWhereTheRunFileSaysSo) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  run.train.learning_rate = 1e30;
  run.train.min_learning_rate = 1e30;
  run.train.lr_schedule = "constant";
  run.train.warmup_steps = 0;
  run.train.on_nonfinite = "skip";
  run.train.steps = 4;
  const auto outcomes = TrainInProcess(run, 2, {});
  ExpectAllOk(outcomes);
  EXPECT_EQ(outcomes[0].finished_step(), 4);
  EXPECT_TRUE(std::isnan(outcomes[0].losses().back()));
}

TEST(TrainerTest, AnAbortEndsEveryRankWithItsReason) {
  const TempFolder folder;
  RunFile run = TinyRun(folder.path(), 20'000);
  run.train.steps = 1'000'000;
  const auto outcomes = TrainInProcess(
      run, 2, {.on_message = [](int, const v1::WorkerMessage& message, GenerationControl& control) {
        if (message.has_step() && message.step().step() == 3) control.Abort("fenced");
      }});
  EXPECT_EQ(outcomes[0].status.code(), absl::StatusCode::kAborted) << outcomes[0].status;
  EXPECT_EQ(outcomes[0].status.message(), "fenced");
  // Its peer is not told, and yet does not hang.
  EXPECT_FALSE(outcomes[1].status.ok());
}

TEST(TrainerTest, AnotherCorpusThanTheRunBeganWithIsRefused) {
  const TempFolder folder;
  const RunFile run = TinyRun(folder.path(), 20'000);
  v1::RankStart start;
  v1::Layout& layout = *start.mutable_layout();
  layout.set_pipeline(1);
  layout.set_data(1);
  layout.set_expert(1);
  layout.set_virtual_stages(1);
  layout.set_schedule("1f1b");
  start.set_corpus_digest("0000");
  GenerationControl control(start);
  const auto trainer = Trainer::Create(run, start, control, [](v1::WorkerMessage) {});
  ASSERT_FALSE(trainer.ok());
  EXPECT_EQ(trainer.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(trainer.status().message().find("[data] train"), std::string::npos);
}

// A process that was another rank may hold the same step of another share of the model.
TEST(TrainerTest, WhereASnapshotIsNamedWhatTheProcessHoldsIsNotTakenUp) {
  const TempFolder folder;
  const RunFile run = TinyRun(folder.path(), 20'000);
  v1::RankStart start;
  v1::Layout& layout = *start.mutable_layout();
  layout.set_pipeline(1);
  layout.set_data(1);
  layout.set_expert(1);
  layout.set_virtual_stages(1);
  layout.set_schedule("1f1b");
  start.set_live(true);
  start.set_start_step(7);
  const auto begin_from = [&](const std::string& snapshots) {
    start.set_restore_folder(snapshots);
    GenerationControl control(start);
    return Trainer::Create(
               run, start, control, [](v1::WorkerMessage) {}, LiveState{.step = 7})
        .status();
  };
  // There is none in the folder.
  EXPECT_NE(begin_from(folder.path()).message().find("does not hold the state of step 7 any more"),
            std::string::npos);
  // Without one it takes up what it holds, and finds that it is not this rank's.
  EXPECT_EQ(begin_from("").code(), absl::StatusCode::kFailedPrecondition);
}

TEST(TrainerTest, ARankOutsideOfItsLayoutIsRefused) {
  const TempFolder folder;
  const RunFile run = TinyRun(folder.path(), 20'000);
  v1::RankStart start;
  start.set_rank(2);
  start.mutable_layout()->set_pipeline(1);
  start.mutable_layout()->set_data(2);
  start.mutable_layout()->set_expert(1);
  start.mutable_layout()->set_virtual_stages(1);
  GenerationControl control(start);
  const auto trainer = Trainer::Create(run, start, control, [](v1::WorkerMessage) {});
  EXPECT_EQ(trainer.status().code(), absl::StatusCode::kInvalidArgument) << trainer.status();
}

}  // namespace
}  // namespace paceline
