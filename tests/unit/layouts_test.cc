// The same run in many layouts: a rank of its own for each part of the model and of the batch,
// the real trainer over Gloo, against one rank that does everything. And checkpoints that one
// layout wrote, in the hands of another.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/files.h"
#include "tests/support/in_process_ranks.h"
#include "tests/support/sanitizers.h"
#include "tests/support/temp_folder.h"
#include "worker/checkpoint/checkpoint.h"

namespace paceline {
namespace {

constexpr std::int64_t kSteps = kSanitized ? 4 : 20;
// As many losses as from the start are compared after a change of layout, too.
constexpr std::int64_t kStepsBeforeChange = kSanitized ? 2 : 10;
constexpr std::int64_t kStepsAfterChange = kSanitized ? 2 : 20;
constexpr std::int64_t kTokens = 4000;

struct Case {
  const char* name;
  LayoutSection layout;
  int ranks;
  bool bits;  // float64 sums and equal micro-batches: the same bits, not only the same numbers
};

// Data-parallel copies, sharded optimizer and stages leave every sum as it is; experts that serve
// several ranks add up the tokens of all of them at once.
const std::vector<Case> kSparseCases = {
    {"data 2", {}, 2, true},
    {"data 4", {}, 4, true},
    {"data 2, zero", {.zero = 1}, 2, true},
    {"data 8, zero", {.zero = 1}, 8, true},
    {"expert 2", {.expert = 2}, 2, false},
    {"expert 4", {.expert = 4}, 4, false},
    {"expert 2 x expert data 2", {.expert = 2}, 4, false},
    {"expert 2 x expert data 2, zero", {.expert = 2, .zero = 1}, 4, false},
    {"pipeline 2", {.pipeline = 2}, 2, true},
    {"pipeline 2, interleaved",
     {.pipeline = 2, .schedule = "interleaved", .virtual_stages = 2},
     2,
     true},
    {"pipeline 2, zero-bubble", {.pipeline = 2, .schedule = "zero-bubble"}, 2, true},
    {"pipeline 4", {.pipeline = 4}, 4, true},
    {"pipeline 4, zero-bubble", {.pipeline = 4, .schedule = "zero-bubble"}, 4, true},
    {"pipeline 2 x data 2, zero", {.pipeline = 2, .zero = 1}, 4, true},
    // 24 micro-batches over 5 copies: 5, 5, 5, 5 and 4.
    {"data 5, uneven", {}, 5, true},
    {"expert 2 x expert data 5, uneven", {.expert = 2}, 10, false},
    {"pipeline 2 x expert 2, zero-bubble",
     {.pipeline = 2, .schedule = "zero-bubble", .expert = 2},
     4,
     false},
    {"pipeline 2 x expert 2 x expert data 2, interleaved, zero",
     {.pipeline = 2, .schedule = "interleaved", .virtual_stages = 2, .expert = 2, .zero = 1},
     8,
     false},
};
const std::vector<Case> kDenseCases = {
    {"data 4, zero", {.zero = 1}, 4, true},
    {"data 3-way uneven, zero", {.zero = 1}, 3, true},
    {"pipeline 2", {.pipeline = 2}, 2, true},
    {"pipeline 2, interleaved",
     {.pipeline = 2, .schedule = "interleaved", .virtual_stages = 2},
     2,
     true},
    {"pipeline 2, interleaved x data 5, uneven",
     {.pipeline = 2, .schedule = "interleaved", .virtual_stages = 2},
     10,
     true},
    {"pipeline 4 x data 2, zero-bubble, zero",
     {.pipeline = 4, .schedule = "zero-bubble", .zero = 1},
     8,
     true},
};

RunFile RunOf(const std::string& folder, bool sparse) {
  RunFile run = TinyRun(folder, kTokens);
  run.model.num_hidden_layers = 4;
  if (!sparse) run.model.n_routed_experts = 0;
  run.train.global_batch_size = 24;
  run.train.lr_schedule = "constant";
  run.train.steps = kSteps;
  run.checkpoint.interval_steps = kStepsBeforeChange;
  return run;
}

RunFile InLayout(RunFile run, const Case& one) {
  run.layout = one.layout;
  run.launch.nodes = 1;
  run.launch.slots_per_node = one.ranks;
  run.checkpoint.dir += std::string(" ") + one.name;
  return run;
}

void ExpectAllTrained(const std::vector<RankOutcome>& outcomes, const RunFile& run) {
  for (const RankOutcome& outcome : outcomes) {
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.finished_step(), run.train.steps);
  }
}

// NaN fails.
bool Within(double value, double expected, double relative) {
  return std::abs(value - expected) <= relative * std::abs(expected);
}

// Losses `begin` and on of a run beside those of the reference: the first within 1e-6, the others
// within 1e-5, or the same bits.
void ExpectLosses(const std::vector<double>& losses, const std::vector<double>& reference,
                  std::size_t begin, bool bits) {
  ASSERT_EQ(losses.size(), reference.size() - begin);
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const double expected = reference[begin + i];
    if (bits) {
      EXPECT_EQ(losses[i], expected) << "step " << begin + i + 1;
    } else {
      EXPECT_TRUE(Within(losses[i], expected, i == 0 ? 1e-6 : 1e-5))
          << "step " << begin + i + 1 << ": " << losses[i] << ", expected " << expected;
    }
  }
}

std::vector<float> ReadTensor(const CheckpointReader& reader, const TensorSliceInfo& slice) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : slice.global_shape) elements *= extent;
  std::vector<float> values(static_cast<std::size_t>(elements));
  const std::vector<std::int64_t> start(slice.global_shape.size(), 0);
  const absl::Status read = reader.Read(slice.name, start, slice.global_shape, values);
  EXPECT_TRUE(read.ok()) << read;
  return values;
}

// Every tensor of `expected` beside the same of `actual`, by the largest difference over the
// tensor's largest value; 0: the same bits.
void ExpectTensors(const std::string& actual, const std::string& expected, double relative,
                   const std::string& prefix = "") {
  const auto left = CheckpointReader::Open(actual);
  const auto right = CheckpointReader::Open(expected);
  ASSERT_TRUE(left.ok()) << left.status();
  ASSERT_TRUE(right.ok()) << right.status();
  std::size_t compared = 0;
  for (const ManifestPart& part : (*right)->manifest().parts) {
    for (const TensorSliceInfo& slice : part.slices) {
      if (slice.name.rfind(prefix, 0) != 0) continue;
      const std::vector<float> a = ReadTensor(**left, slice);
      const std::vector<float> b = ReadTensor(**right, slice);
      ++compared;
      if (relative == 0) {
        EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << slice.name;
        continue;
      }
      double largest = 0;
      double difference = 0;
      for (std::size_t i = 0; i < b.size(); ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(b[i])));
        const double apart = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(apart <= difference)) difference = apart;
      }
      EXPECT_TRUE(difference <= relative * largest)
          << slice.name << ": " << difference << " of " << largest;
    }
  }
  EXPECT_GT(compared, 0u);
}

class LayoutsTest : public testing::TestWithParam<bool> {
 protected:
  bool sparse() const { return GetParam(); }
  const std::vector<Case>& cases() const { return sparse() ? kSparseCases : kDenseCases; }
  const TempFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Models, LayoutsTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Sparse" : "Dense"; });

TEST_P(LayoutsTest, EveryLayoutHasTheLossesOfOneRank) {
  const RunFile run = RunOf(folder_.path(), sparse());
  const std::vector<RankOutcome> one = TrainInProcess(run, 1, {});
  ExpectAllTrained(one, run);
  for (const Case& layout : cases()) {
    SCOPED_TRACE(layout.name);
    const RunFile split = InLayout(run, layout);
    const std::vector<RankOutcome> many = TrainInProcess(split, layout.ranks, {});
    ExpectAllTrained(many, split);
    ExpectLosses(many[0].losses(), one[0].losses(), 0, layout.bits);
  }
}

// After one step AdamW's first moment is the clipped gradient times 1 - beta1.
TEST_P(LayoutsTest, EveryLayoutHasTheGradientsOfOneRank) {
  RunFile run = RunOf(folder_.path(), sparse());
  run.train.warmup_steps = 0;
  run.train.steps = 1;
  const std::string expected = CommitCheckpoint(run, TrainInProcess(run, 1, {}), 1);
  for (const Case& layout : cases()) {
    SCOPED_TRACE(layout.name);
    const RunFile split = InLayout(run, layout);
    const std::vector<RankOutcome> many = TrainInProcess(split, layout.ranks, {});
    ExpectAllTrained(many, split);
    ExpectTensors(CommitCheckpoint(split, many, 1), expected, layout.bits ? 0 : 1e-5,
                  "optimizer.exp_avg/");
  }
}

TEST_P(LayoutsTest, WhatOneLayoutSavedTrainsOnInAnother) {
  RunFile run = RunOf(folder_.path(), sparse());
  run.train.steps = kStepsBeforeChange + kStepsAfterChange;
  const std::vector<double> reference = TrainInProcess(run, 1, {})[0].losses();
  for (std::size_t i = 0; i < cases().size(); ++i) {
    const Case& from = cases()[i];
    const Case& to = cases()[(i + 3) % cases().size()];
    SCOPED_TRACE(std::string(from.name) + " -> " + to.name);
    const RunFile before = InLayout(run, from);
    const std::vector<RankOutcome> saved = TrainInProcess(before, from.ranks, {});
    const std::string checkpoint = CommitCheckpoint(before, saved, kStepsBeforeChange);

    RunFile after = InLayout(run, to);
    after.checkpoint.dir += " resumed";
    const std::vector<RankOutcome> resumed = TrainInProcess(
        after, to.ranks, {.checkpoint = checkpoint, .start_step = kStepsBeforeChange});
    ExpectAllTrained(resumed, after);
    const std::vector<double> whole = saved[0].losses();
    ExpectLosses(resumed[0].losses(), whole, kStepsBeforeChange, from.bits && to.bits);
    if (from.bits && to.bits) {
      EXPECT_EQ(whole, reference);
    }
  }
}

TEST_P(LayoutsTest, StateThatAnotherLayoutReadsAndSavesKeepsEveryBit) {
  RunFile run = RunOf(folder_.path(), sparse());
  run.train.steps = kStepsBeforeChange;
  for (std::size_t i = 0; i < cases().size(); ++i) {
    const Case& from = cases()[i];
    const Case& to = cases()[(i + 1) % cases().size()];
    SCOPED_TRACE(std::string(from.name) + " -> " + to.name);
    const RunFile before = InLayout(run, from);
    const std::string checkpoint =
        CommitCheckpoint(before, TrainInProcess(before, from.ranks, {}), kStepsBeforeChange);
    RunFile after = InLayout(run, to);
    after.checkpoint.dir += " again";
    ExpectTensors(SaveAgain(after, to.ranks, checkpoint), checkpoint, 0);
  }
}

// Its neighbours wait for others that live, too; all of them leave, and nothing of theirs is used
// after it is gone.
TEST(LayoutsFailureTest, ARankThatIsAbortedEndsEveryStageInEverySchedule) {
  const TempFolder folder;
  for (const char* schedule : {"1f1b", "zero-bubble"}) {
    RunFile run = RunOf(folder.path(), /*sparse=*/true);
    run.layout = {.pipeline = 4, .schedule = schedule, .expert = 2};
    const std::vector<RankOutcome> outcomes = TrainInProcess(
        run, 8,
        {.on_message = [](int, const v1::WorkerMessage& message, GenerationControl& control) {
          if (message.has_step() && message.step().step() == 3) control.Abort("fenced");
        }});
    EXPECT_EQ(outcomes[0].status.message(), "fenced") << outcomes[0].status;
    for (const RankOutcome& outcome : outcomes) EXPECT_FALSE(outcome.status.ok());
  }
}

}  // namespace
}  // namespace paceline
