#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "launch/cli/display.h"
#include "launch/cli/format.h"
#include "launch/cli/progress_output.h"

namespace paceline::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

v1::RunStatus RunningAt(std::int64_t step) {
  v1::RunStatus status;
  status.set_state(v1::RUN_STATE_RUNNING);
  status.set_generation(1);
  status.set_steps_total(100);
  status.set_currency("EUR");
  status.set_cost(0.01234);
  status.mutable_step()->set_step(step);
  status.mutable_step()->set_loss(2.5);
  status.mutable_step()->set_tokens(1000);
  for (int rank = 0; rank < 2; ++rank) {
    v1::RankProgress& progress = *status.add_ranks();
    progress.set_step_seconds(10);
    progress.set_compute_seconds(9);
    progress.set_exposed_communication_seconds(0.8);
    progress.set_data_wait_seconds(0.1);
  }
  return status;
}

TEST(FormatTest, DurationsKeepTwoUnits) {
  EXPECT_EQ(FormatDuration(0.44), "0.4 s");
  EXPECT_EQ(FormatDuration(9.97), "10 s");
  EXPECT_EQ(FormatDuration(59.4), "59 s");
  EXPECT_EQ(FormatDuration(59.6), "1m 00s");
  EXPECT_EQ(FormatDuration(3725), "1h 02m");
  EXPECT_EQ(FormatDuration(5 * 86400 + 3 * 3600), "5d 03h");
  EXPECT_EQ(FormatDuration(-1), "?");
  EXPECT_EQ(FormatDuration(std::nan("")), "?");
}

TEST(FormatTest, CountsAndBytesKeepThreeDigits) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(51234), "51.2k");
  EXPECT_EQ(FormatCount(999999), "1.00M");
  EXPECT_EQ(FormatCount(1.3e6), "1.30M");
  EXPECT_EQ(FormatCount(std::numeric_limits<double>::infinity()), "?");
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(1536), "1.50 KiB");
  EXPECT_EQ(FormatBytes(5.0 * (1 << 30)), "5.00 GiB");
}

TEST(FormatTest, SmallAmountsOfMoneyDoNotVanish) {
  EXPECT_EQ(FormatMoney(12.345, "EUR"), "12.35 EUR");
  EXPECT_EQ(FormatMoney(0.0012345, "EUR"), "0.00123 EUR");
  EXPECT_EQ(FormatMoney(0, "EUR"), "0.00 EUR");
  EXPECT_EQ(FormatMoney(std::nan(""), "EUR"), "? EUR");
}

TEST(FormatTest, ShareOfNothingIsUnknown) {
  EXPECT_EQ(FormatShare(9, 10), "90 %");
  EXPECT_EQ(FormatShare(1, 0), "?");
}

TEST(FormatTest, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(FormatOneLine("a\nb"), "a b");
  EXPECT_EQ(FormatOneLine("abcdefgh", 8), "abcdefgh");
  EXPECT_EQ(FormatOneLine("abcdefghi", 8), "abcde...");
  EXPECT_EQ(FormatOneLine("abcd\u00e9fghi", 8), "abcd...") << "the fifth is of two bytes";
}

TEST(FormatTest, TimeIsUtc) { EXPECT_EQ(FormatTime(0), "1970-01-01 00:00:00 UTC"); }

TEST(RateWindowTest, RateIsThatOfTheLastSeconds) {
  RateWindow rate;
  EXPECT_EQ(rate.SecondsPerStep(), 0);
  rate.Add(0, 1);
  EXPECT_EQ(rate.SecondsPerStep(), 0);
  rate.Add(1, 2);
  rate.Add(1.5, 2);
  EXPECT_DOUBLE_EQ(rate.SecondsPerStep(), 1);
  // The slow past leaves the window.
  for (int i = 1; i <= 20; ++i) rate.Add(1 + i, 2 + 2 * i);
  EXPECT_DOUBLE_EQ(rate.SecondsPerStep(), 0.5);
}

TEST(RateWindowTest, StepLongerThanTheWindowStillHasARate) {
  RateWindow rate;
  rate.Add(0, 1);
  rate.Add(60, 2);
  rate.Add(120, 3);
  EXPECT_DOUBLE_EQ(rate.SecondsPerStep(), 60);
}

TEST(RateWindowTest, RollbackBeginsAnew) {
  RateWindow rate;
  rate.Add(0, 10);
  rate.Add(1, 20);
  rate.Add(2, 5);
  EXPECT_EQ(rate.SecondsPerStep(), 0);
  rate.Add(3, 6);
  EXPECT_DOUBLE_EQ(rate.SecondsPerStep(), 1);
}

TEST(ProgressLineTest, NamesEverythingThatIsKnown) {
  RateWindow rate;
  rate.Add(0, 40);
  rate.Add(5, 50);
  EXPECT_EQ(ProgressLine(RunningAt(50), rate),
            "step 50/100 | loss 2.5000 | 2.00k tokens/s | compute 90 %, communication 8 %, data 1 "
            "% | 25 s left | 0.0123 EUR");
}

TEST(ProgressLineTest, LeavesOutWhatIsUnknown) {
  v1::RunStatus status = RunningAt(1);
  status.clear_ranks();
  status.set_cost(0);
  EXPECT_EQ(ProgressLine(status, RateWindow()), "step 1/100 | loss 2.5000");
}

TEST(ProgressLineTest, ShortFormFitsANarrowTerminal) {
  RateWindow rate;
  rate.Add(0, 40);
  rate.Add(5, 50);
  const std::string line = ShortProgressLine(RunningAt(50), rate);
  EXPECT_EQ(line, "50/100 loss 2.5000 2.00k/s comp 90 % comm 8 % data 1 % 25 s left 0.0123 EUR");
  EXPECT_LT(line.size(), 80u);
}

TEST(ProgressLineTest, TheLongestThatFitsIsTakenAndCutAtLast) {
  EXPECT_EQ(FitToColumns("abcdef", "abc", 6), "abcdef");
  EXPECT_EQ(FitToColumns("abcdef", "abc", 5), "abc");
  EXPECT_EQ(FitToColumns("abcdef", "abc", 2), "ab");
  EXPECT_EQ(FitToColumns("abcdef", "abc", 0), "abcdef");
}

TEST(ProgressReporterTest, StatesAreToldOnceEach) {
  ProgressReporter reporter(/*plain=*/false);
  v1::RunStatus status;
  status.set_state(v1::RUN_STATE_WAITING);
  status.set_reason("1 of 2 nodes are here");
  EXPECT_THAT(reporter.Update(status, 0).events, ElementsAre("waiting: 1 of 2 nodes are here"));
  EXPECT_THAT(reporter.Update(status, 1).events, IsEmpty());
  status.set_reason("");
  status.set_state(v1::RUN_STATE_STARTING);
  status.set_generation(1);
  status.mutable_layout()->set_data(4);
  EXPECT_THAT(reporter.Update(status, 2).events, ElementsAre("starting generation 1 on 4 ranks"));
}

TEST(ProgressReporterTest, EvaluationsCheckpointsAndRecoveriesAreTold) {
  ProgressReporter reporter(/*plain=*/false);
  reporter.Update(RunningAt(10), 0);
  v1::RunStatus status = RunningAt(50);
  status.mutable_eval()->set_step(50);
  status.mutable_eval()->set_valid_loss(2.25);
  status.set_checkpoint_step(50);
  status.set_checkpoint("/runs/a/checkpoints/step-00000050");
  EXPECT_THAT(reporter.Update(status, 1).events,
              ElementsAre("step 50: validation loss 2.2500",
                          "step 50: checkpoint committed: /runs/a/checkpoints/step-00000050"));
  EXPECT_THAT(reporter.Update(status, 2).events, IsEmpty());
  status.set_generation(2);
  status.set_recoveries(1);
  status.set_lost_steps(7);
  EXPECT_THAT(reporter.Update(status, 3).events,
              ElementsAre("recovery: generation 2 goes on; 7 steps lost in the run so "
                          "far"));
}

TEST(ProgressReporterTest, AMoveIsNoRecoveryAndARecoveryBeforeTheFirstLookIsTold) {
  ProgressReporter reporter(/*plain=*/false);
  v1::RunStatus status;
  status.set_state(v1::RUN_STATE_WAITING);
  reporter.Update(status, 0);
  status = RunningAt(3);
  status.set_generation(2);
  status.set_recoveries(1);
  EXPECT_THAT(
      reporter.Update(status, 1).events,
      ElementsAre("recovery: generation 2 goes on; 0 steps lost in the run so far", "running"));
  status.set_generation(3);  // with nodes that came back
  EXPECT_THAT(reporter.Update(status, 2).events, IsEmpty());
}

TEST(ProgressReporterTest, WhatAResumedRunDidBeforeIsNoNews) {
  ProgressReporter reporter(/*plain=*/false);
  v1::RunStatus status = RunningAt(60);
  status.mutable_eval()->set_step(50);
  status.set_checkpoint_step(50);
  EXPECT_THAT(reporter.Update(status, 0).events, ElementsAre("running"));
}

TEST(ProgressReporterTest, WithoutATerminalProgressIsALineNowAndThen) {
  ProgressReporter reporter(/*plain=*/true);
  v1::RunStatus first = RunningAt(0);
  reporter.Update(first, 0);
  EXPECT_THAT(reporter.Update(RunningAt(1), 0.1).events, ElementsAre(StartsWith("step 1/100")));
  EXPECT_THAT(reporter.Update(RunningAt(2), 0.2).events, IsEmpty());
  // Each 5 % of the steps, or ten seconds.
  EXPECT_THAT(reporter.Update(RunningAt(6), 1).events, ElementsAre(StartsWith("step 6/100")));
  EXPECT_THAT(reporter.Update(RunningAt(7), 10.9).events, IsEmpty());
  EXPECT_THAT(reporter.Update(RunningAt(8), 11.1).events, ElementsAre(StartsWith("step 8/100")));
}

TEST(ProgressReporterTest, OnATerminalProgressIsNoEvent) {
  ProgressReporter reporter(/*plain=*/false);
  reporter.Update(RunningAt(1), 0);
  const ProgressReporter::Lines lines = reporter.Update(RunningAt(60), 30);
  EXPECT_THAT(lines.events, IsEmpty());
  EXPECT_THAT(lines.progress, HasSubstr("step 60/100"));
}

// A supervisor that waited for its reader would not start what has died again.
TEST(ProgressOutputTest, AReaderThatDoesNotReadHoldsNobodyUp) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::FILE* stream = ::fdopen(ends[1], "w");
  ProgressOutput output(stream);
  for (int i = 0; i < 3000; ++i) output.Event("event " + std::to_string(i) + std::string(90, '.'));
  std::string told(1 << 20, '\0');
  const ssize_t first = ::read(ends[0], told.data(), told.size());
  ASSERT_GT(first, 10'000);
  EXPECT_THAT(told.substr(0, 8), HasSubstr("event 0."));
  output.Event("the last one");
  const ssize_t second = ::read(ends[0], told.data(), told.size());
  ASSERT_GT(second, 0);
  EXPECT_THAT(told.substr(0, static_cast<std::size_t>(second)),
              testing::MatchesRegex("\\([0-9]+ lines are left out: nobody read them\\)\nthe last "
                                    "one\n"));
  std::fclose(stream);
  ::close(ends[0]);
}

}  // namespace
}  // namespace paceline::cli
