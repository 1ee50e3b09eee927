// How long recoveries take, stage by stage, and what a run's time goes to.
#include <gtest/gtest.h>

#include <chrono>

#include "coordinator/core/phases.h"
#include "coordinator/core/recovery.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::milliseconds;

void ExpectTimes(const v1::RecoveryTimes& times, std::vector<std::int64_t> expected) {
  EXPECT_EQ(std::vector<std::int64_t>({times.detect_ms(), times.fence_ms(), times.regroup_ms(),
                                       times.restore_ms(), times.first_step_ms()}),
            expected);
}

TEST(RecoveryClockTest, StagesFollowEachOther) {
  const RecoveryClock clock{
      .generation = 1, .well_ms = 100, .ended_ms = 110, .left_ms = 130, .ready_ms = 170};
  ExpectTimes(clock.Times(/*load_ms=*/15, /*begin_ms=*/80, /*now_ms=*/410), {10, 20, 25, 95, 160});
}

TEST(RecoveryClockTest, WhatRanksSayMakesNoStageNegative) {
  const RecoveryClock clock{
      .generation = 1, .well_ms = 100, .ended_ms = 110, .left_ms = 130, .ready_ms = 170};
  ExpectTimes(clock.Times(/*load_ms=*/0, /*begin_ms=*/0, /*now_ms=*/200), {10, 20, 40, 0, 30});
  ExpectTimes(clock.Times(/*load_ms=*/999'999, /*begin_ms=*/999'999, /*now_ms=*/200),
              {10, 20, 0, 70, 0});
}

TEST(PhaseClockTest, PhasesAddUpToTheAge) {
  PhaseClock clock;
  clock.Enter(v1::RUN_PHASE_WAITING, 10);
  clock.Enter(v1::RUN_PHASE_TRAINING, 15);
  clock.Enter(v1::RUN_PHASE_TRAINING, 20);
  clock.Enter(v1::RUN_PHASE_RECOVERING, 40);
  clock.Enter(v1::RUN_PHASE_TRAINING, 43);
  const auto times = clock.Until(50);
  EXPECT_EQ(times.at(v1::RUN_PHASE_WAITING), 5);
  EXPECT_EQ(times.at(v1::RUN_PHASE_TRAINING), 32);
  EXPECT_EQ(times.at(v1::RUN_PHASE_RECOVERING), 3);
  clock.Enter(v1::RUN_PHASE_UNSPECIFIED, 50);
  EXPECT_EQ(clock.Until(1000), times);
}

v1::RankFailed Killed(const Cluster& cluster, int rank) {
  v1::RankFailed failed = FailureOf(cluster, rank, absl::StatusCode::kUnavailable, "");
  failed.set_signal(9);
  return failed;
}

v1::RankFailed LostAPeer(const Cluster& cluster, int rank) {
  v1::RankFailed failed = FailureOf(cluster, rank, absl::StatusCode::kUnavailable, "peer lost");
  failed.set_survives(true);
  return failed;
}

// Where the rank is, and how long it took to load its state and to begin.
void Tell(Cluster& cluster, int rank, std::int64_t step, double load_seconds = 0,
          double begin_seconds = 0.001) {
  v1::AgentMessage message;
  v1::NodeProgress& progress = *message.mutable_heartbeat()->add_progress();
  *progress.mutable_key() = cluster.Key();
  v1::RankProgress& told = *progress.add_ranks();
  told.set_rank(rank);
  told.set_step(step);
  told.set_load_seconds(load_seconds);
  told.set_begin_seconds(begin_seconds);
  cluster.Say(rank / 2, message);
}

// Every rank has done `step`.
void StepAll(Cluster& cluster, std::int64_t step) {
  for (int rank = 3; rank >= 0; --rank) Tell(cluster, rank, step);
}

void ReadyAll(Cluster& cluster) {
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
}

v1::RecoveryTimes LastRecovery(const Cluster& cluster) {
  return cluster.Facts(v1::Fact::kFirstStepDone).back().first_step_done().recovery();
}

TEST(RecoveryTimesTest, EachStageIsTimed) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  StepAll(cluster, 3);
  ASSERT_EQ(cluster.Facts(v1::Fact::kFirstStepDone).size(), 1u);
  EXPECT_FALSE(cluster.Facts(v1::Fact::kFirstStepDone)[0].first_step_done().has_recovery());
  StepAll(cluster, 4);

  cluster.Fail(0, LostAPeer(cluster, 1));
  cluster.Advance(milliseconds(7));
  cluster.Fail(1, Killed(cluster, 3));
  cluster.Advance(milliseconds(20));
  cluster.Gone(0, 1);
  cluster.Advance(milliseconds(30));
  cluster.Gone(1, 1);
  cluster.Advance(milliseconds(50));
  ReadyAll(cluster);
  cluster.Advance(milliseconds(200));
  Tell(cluster, 0, 1, 0.005, 0.09);
  Tell(cluster, 1, 1, 0.012, 0.08);
  Tell(cluster, 2, 1);
  EXPECT_EQ(cluster.Facts(v1::Fact::kFirstStepDone).size(), 1u) << "the slowest may not have told";
  Tell(cluster, 3, 0, 0.010, 0.11);
  ASSERT_EQ(cluster.Facts(v1::Fact::kFirstStepDone).size(), 2u);
  ExpectTimes(LastRecovery(cluster), {7, 50, 38, 122, 90});
  StepAll(cluster, 2);
  EXPECT_EQ(cluster.Facts(v1::Fact::kFirstStepDone).size(), 2u);
}

// A generation that fails before its first step belongs to the recovery that it was to be.
TEST(RecoveryTimesTest, SeveralFailuresBeforeAStepAreOneRecovery) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  StepAll(cluster, 3);
  for (std::uint64_t generation = 1; generation <= 2; ++generation) {
    cluster.Fail(1, Killed(cluster, 3));
    cluster.Advance(milliseconds(100));
    cluster.Gone(0, generation);
    cluster.Gone(1, generation);
    cluster.Advance(milliseconds(1000));
    ReadyAll(cluster);
  }
  cluster.Advance(milliseconds(40));
  StepAll(cluster, 1);
  ASSERT_EQ(cluster.Facts(v1::Fact::kFirstStepDone).size(), 2u);
  ExpectTimes(LastRecovery(cluster), {0, 100, 2100, 1, 39});
}

// Nobody knows any more when it ended, and nothing is made up.
TEST(RecoveryTimesTest, ACoordinatorThatWasNotThereTellsNoTimes) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  StepAll(cluster, 3);
  cluster.Restart();
  for (const int node : {0, 1}) cluster.Register(node, 1, 2, "run");
  StepAll(cluster, 4);
  EXPECT_EQ(cluster.Facts(v1::Fact::kFirstStepDone).size(), 1u);
  cluster.Fail(1, Killed(cluster, 3));
  cluster.Restart();
  for (const int node : {0, 1}) {
    cluster.Register(node, 1, 2, "run");
    cluster.Gone(node, 1);
    cluster.Heartbeat(node);
  }
  ASSERT_EQ(cluster.Status().generation(), 2u);
  ReadyAll(cluster);
  StepAll(cluster, 1);
  const auto facts = cluster.Facts(v1::Fact::kFirstStepDone);
  ASSERT_EQ(facts.size(), 2u);
  EXPECT_FALSE(facts[1].first_step_done().has_recovery());
}

TEST(RecoveryTimesTest, ARunsTimeGoesToItsPhases) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Advance(milliseconds(1000));
  cluster.Register(0, 1, 2, "run");
  cluster.Register(1, 1, 2, "run");
  cluster.Advance(milliseconds(200));
  ReadyAll(cluster);
  StepAll(cluster, 1);
  cluster.Advance(milliseconds(3000));
  cluster.Fail(1, Killed(cluster, 3));
  cluster.Advance(milliseconds(40));
  cluster.Gone(0, 1);
  cluster.Gone(1, 1);
  ReadyAll(cluster);
  cluster.Advance(milliseconds(60));
  StepAll(cluster, 1);
  cluster.Advance(milliseconds(500));
  cluster.Heartbeat(0);
  std::map<v1::RunPhase, std::int64_t> spent;
  const v1::RunStatus status = cluster.Status();
  for (const v1::PhaseTime& time : status.phases()) spent[time.phase()] = time.ms();
  EXPECT_EQ(spent[v1::RUN_PHASE_WAITING], 1000);
  EXPECT_EQ(spent[v1::RUN_PHASE_STARTING], 200);
  EXPECT_EQ(spent[v1::RUN_PHASE_TRAINING], 3500);
  EXPECT_EQ(spent[v1::RUN_PHASE_RECOVERING], 100);
  EXPECT_EQ(spent.count(v1::RUN_PHASE_RESIZING), 0u);
}

}  // namespace
}  // namespace paceline::core
