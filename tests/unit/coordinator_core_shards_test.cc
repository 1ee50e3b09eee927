#include <gtest/gtest.h>

#include <limits>

#include "coordinator/core/shards.h"

namespace paceline::core {
namespace {

core::Run RunOf(std::int64_t steps) {
  Run run;
  run.file.train.steps = steps;
  run.file.train.global_batch_size = 8;
  run.file.train.sequence_length = 4;
  run.request.set_run_id("run");
  run.request.set_corpus_digest("c0ffee");
  return run;
}

void Grant(core::Run* run, const std::vector<v1::Window>& windows) {
  run->windows.insert(run->windows.end(), windows.begin(), windows.end());
}

TEST(ShardsTest, AQuarterOfAnHourLiesAheadInTwoWindows) {
  core::Run run = RunOf(1'000'000);
  const auto windows = WindowsToGrant(run, 0, 0.5, 0);
  ASSERT_EQ(windows.size(), 2u);
  EXPECT_EQ(windows[0].first_step(), 0);
  EXPECT_EQ(windows[1].first_step(), windows[0].end_step());
  EXPECT_EQ(windows[1].end_step(), 1800);
}

TEST(ShardsTest, SlowStepsStillHaveTwoSmallestWindowsAhead) {
  EXPECT_EQ(StepsToGrantAhead(3600), 2 * kMinWindowSteps);
}

TEST(ShardsTest, AnAbsurdStepTimeGrantsABoundedNumberOfSteps) {
  EXPECT_EQ(StepsToGrantAhead(1e-12), kMaxGrantAheadSteps);
  EXPECT_EQ(StepsToGrantAhead(std::numeric_limits<double>::quiet_NaN()),
            StepsToGrantAhead(kAssumedStepSeconds));
  EXPECT_EQ(StepsToGrantAhead(-1), StepsToGrantAhead(kAssumedStepSeconds));
}

TEST(ShardsTest, WindowsEndAtTheLastStepAndCoverEveryStepOnce) {
  core::Run run = RunOf(10'000);
  std::int64_t next = 0;
  for (std::int64_t step = 0; step < 10'000; step += 100) {
    const auto windows = WindowsToGrant(run, step, 1.0, 0);
    for (const v1::Window& window : windows) {
      EXPECT_EQ(window.first_step(), next);
      EXPECT_GT(window.end_step(), window.first_step());
      next = window.end_step();
    }
    Grant(&run, windows);
    EXPECT_GE(run.GrantedUntil(), std::min<std::int64_t>(10'000, step + 900));
  }
  EXPECT_EQ(next, 10'000);
}

TEST(ShardsTest, ARequestBeyondWhatLiesAheadIsMetByFewWindows) {
  core::Run run = RunOf(1'000'000);
  const auto windows = WindowsToGrant(run, 0, 1.0, 500'000);
  EXPECT_LE(windows.size(), 8u);
  EXPECT_GE(windows.back().end_step(), 500'000);
}

TEST(ShardsTest, WhatWasGrantedIsNotGrantedAgain) {
  core::Run run = RunOf(1000);
  Grant(&run, WindowsToGrant(run, 0, 1.0, 0));
  EXPECT_TRUE(WindowsToGrant(run, 0, 1.0, 100).empty());
}

TEST(ShardsTest, RollBackCountsTheStepsDoneAfterTheCommittedOnes) {
  core::Run run = RunOf(1000);
  Grant(&run, WindowsToGrant(run, 0, 1.0, 0));
  v1::WindowsRolledBack back;
  ASSERT_TRUE(RollBack(run, 0, 37, &back));
  EXPECT_EQ(back.window().first_step(), 0);
  EXPECT_EQ(back.window().end_step(), run.GrantedUntil());
  EXPECT_EQ(back.lost_steps(), 37);
  EXPECT_EQ(back.lost_tokens(), 37 * 8 * 4);
  ASSERT_TRUE(RollBack(run, 36, 37, &back));
  EXPECT_EQ(back.window().first_step(), 36);
  EXPECT_EQ(back.lost_steps(), 1);
  EXPECT_FALSE(RollBack(run, run.GrantedUntil(), 37, &back));
  run.windows.clear();
  EXPECT_FALSE(RollBack(run, 0, 37, &back));
}

TEST(ShardsTest, LedgerDigestDependsOnCorpusSeedAndPosition) {
  core::Run run = RunOf(1000);
  Grant(&run, WindowsToGrant(run, 0, 1.0, 0));
  const std::string digest = LedgerDigestAt(run, 50);
  EXPECT_EQ(digest.size(), 32u);
  EXPECT_EQ(digest, LedgerDigestAt(run, 50));
  EXPECT_NE(digest, LedgerDigestAt(run, 51));
  core::Run other = run;
  other.file.run.seed = 8;
  EXPECT_NE(digest, LedgerDigestAt(other, 50));
  other = run;
  other.request.set_corpus_digest("beef");
  EXPECT_NE(digest, LedgerDigestAt(other, 50));
  other = run;
  other.ledger_digest = digest;
  EXPECT_NE(digest, LedgerDigestAt(other, 50));
}

}  // namespace
}  // namespace paceline::core
