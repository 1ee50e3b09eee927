// Failures of ranks and nodes: who is to blame, and what becomes of the run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/core/planner.h"
#include "coordinator/core/restore.h"
#include "coordinator/core/runs.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;
using Kind = v1::CoordinatorMessage;

TEST(FailuresTest, ALostNodeEndsTheGenerationEverywhereByName) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Progress(0, 0, 3);
  cluster.Run(seconds(10), {0});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("node-1 was silent"));
  EXPECT_EQ(cluster.Status().failure().cause(), v1::FAILURE_CAUSE_NODE_LOST);
  EXPECT_EQ(cluster.Facts(v1::Fact::kGenerationEnded).size(), 1u);
}

v1::RankFailed Killed(const Cluster& cluster, int rank) {
  v1::RankFailed killed = FailureOf(cluster, rank, absl::StatusCode::kUnavailable, "");
  killed.set_signal(9);
  return killed;
}

// Generation `next` begins as soon as both nodes have left the one before.
void ExpectGoesOn(Cluster& cluster, std::uint64_t next, std::int64_t start_step) {
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  cluster.Gone(0, next - 1);
  EXPECT_EQ(cluster.Status().generation(), next - 1);
  cluster.Gone(1, next - 1);
  ASSERT_EQ(cluster.Sent(0, Kind::kStart).size(), 1u);
  const v1::StartGeneration start = cluster.Sent(0, Kind::kStart)[0].start();
  EXPECT_EQ(start.key().generation(), next);
  EXPECT_EQ(start.start_step(), start_step);
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
}

TEST(RecoveryTest, AfterAWorkersDeathTheNextGenerationGoesOnFromTheCheckpoint) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);
  cluster.Progress(0, 0, 15);
  cluster.Fail(1, Killed(cluster, 3));
  EXPECT_EQ(cluster.Status().failure().cause(), v1::FAILURE_CAUSE_WORKER_EXIT);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("rank 3 on node-1 was ended by SIGKILL"));
  ExpectGoesOn(cluster, 2, 10);
  EXPECT_EQ(cluster.Status().lost_steps(), 5);
  EXPECT_EQ(cluster.Status().recoveries(), 1);
}

// Four data-parallel copies: one that has the latest step is enough.
TEST(RecoveryTest, WhatSurvivorsHoldInMemoryIsTakenUp) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);
  cluster.Progress(0, 0, 15);
  cluster.Fail(1, Killed(cluster, 3));
  cluster.Gone(0, 1, {{0, 15}, {1, 16}});
  cluster.Gone(1, 1, {{2, 15}});
  ASSERT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  const v1::StartGeneration start = cluster.Sent(1, Kind::kStart)[0].start();
  EXPECT_TRUE(start.live());
  EXPECT_EQ(start.start_step(), 16);
  EXPECT_EQ(start.start_tokens(), 16 * 4 * 16);
  EXPECT_EQ(start.checkpoint(), "");
  ASSERT_EQ(start.transfers_size(), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(start.transfers(i).from(), 1);
    EXPECT_EQ(start.transfers(i).to(), std::vector<int>({0, 2, 3})[static_cast<std::size_t>(i)]);
  }
  EXPECT_EQ(cluster.Status().lost_steps(), 0);
  // The checkpoint before it stays the last committed one, and the next follows it.
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
  cluster.Checkpoint(20);
  EXPECT_EQ(cluster.Status().checkpoint_step(), 20);
}

TEST(RecoveryTest, WhatALostNodeHeldIsNotPlannedWith) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);
  cluster.Fail(1, Killed(cluster, 3));
  cluster.Gone(0, 1, {{0, 15}, {1, 15}});
  cluster.Register(1, 2, 2, "run");  // anew, before it had left
  ASSERT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  const v1::StartGeneration start = cluster.Sent(1, Kind::kStart)[0].start();
  EXPECT_EQ(start.start_step(), 15);
  ASSERT_EQ(start.transfers_size(), 2);
  EXPECT_EQ(start.transfers(0).to(), 2);
  cluster.Fail(0, Killed(cluster, 0));
  cluster.Gone(1, 2);  // had not got it yet
  cluster.Register(0, 2, 2, "run");
  ASSERT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  EXPECT_FALSE(cluster.Sent(1, Kind::kStart)[0].start().live());
  EXPECT_EQ(cluster.Sent(1, Kind::kStart)[0].start().start_step(), 10);
  EXPECT_EQ(cluster.Status().lost_steps(), 5);
}

TEST(RecoveryTest, ACoordinatorThatDiesInBetweenGoesOnAlike) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);
  cluster.Fail(1, Killed(cluster, 3));
  cluster.Restart();
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  cluster.Register(0, 1, 2, "run");
  cluster.Heartbeat(0);
  cluster.Register(1, 1, 2, "run");
  cluster.Heartbeat(1);
  ASSERT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, Kind::kStart)[0].start().start_step(), 10);
}

TEST(RecoveryTest, ANodeThatComesBackTakesItsPlace) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Run(seconds(10), {0});
  cluster.Gone(0, 1);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("waits for 4 slots"));
  cluster.Register(1, 2, 2, "run");
  ASSERT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  EXPECT_EQ(cluster.Status().recoveries(), 1);
}

TEST(RecoveryTest, ThreeGenerationsThatKeepNothingEndTheRun) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);  // the first one kept something
  cluster.Progress(0, 0, 17);
  cluster.Fail(1, Killed(cluster, 3));
  for (const std::uint64_t next : {2, 3, 4}) {
    ExpectGoesOn(cluster, next, 10);
    cluster.Progress(0, 0, 17);
    // Both nodes: neither is to blame.
    next == 3 ? cluster.Fail(1, Killed(cluster, 3)) : cluster.Fail(0, Killed(cluster, 0));
  }
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  EXPECT_TRUE(cluster.Status().retryable());
  EXPECT_THAT(cluster.Status().reason(),
              HasSubstr("3 generations in a row began at step 10 and kept nothing"));
}

TEST(RecoveryTest, LostNodesMakeNoCrashLoop) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10\nkeep = 2\n[failure]\nmax_restarts = 0",
                         "min_nodes = 2");
  for (std::uint64_t generation = 1; generation < 6; ++generation) {
    EXPECT_EQ(cluster.Status().generation(), generation);
    cluster.Register(1, generation + 1, 2, "run");  // its agent was started anew
    cluster.Gone(0, generation);
  }
}

TEST(RecoveryTest, RestartsAreLimited) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10\nkeep = 2\n[failure]\nmax_restarts = 1");
  cluster.Checkpoint(10);
  cluster.Progress(0, 0, 15);
  cluster.Fail(1, Killed(cluster, 3));
  ExpectGoesOn(cluster, 2, 10);
  cluster.Progress(0, 0, 20);
  cluster.Fail(1, Killed(cluster, 3));
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  EXPECT_TRUE(cluster.Status().retryable());
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("max_restarts = 1 is used up"));
}

TEST(FailuresTest, TheRankThatDiedIsNamedNotTheSurvivorThatSpokeFirst) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Fail(0, FailureOf(cluster, 0, absl::StatusCode::kUnavailable, "rank 3 hung up"));
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STARTING);
  v1::RankFailed died = FailureOf(cluster, 3, absl::StatusCode::kOk, "");
  died.set_signal(11);
  cluster.Fail(1, died);
  EXPECT_EQ(cluster.Status().failure().rank(), 3);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("SIGSEGV"));
}

TEST(FailuresTest, ASurvivorsWordStandsWhenNoCauseFollows) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Fail(0, FailureOf(cluster, 0, absl::StatusCode::kDeadlineExceeded, "all_reduce: 120 s"));
  cluster.Run(seconds(4), {0, 1});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STARTING);
  cluster.Run(seconds(1), {0, 1});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("rank 0 on node-0 failed: all_reduce: 120 s"));
  EXPECT_EQ(cluster.Status().failure().cause(), v1::FAILURE_CAUSE_PEER_LOST);
}

// An agent's death takes its ranks along, and nobody is left to tell of them.
TEST(FailuresTest, TheNodeThatDiedIsNamedNotTheSurvivorsThatBlameItsRanks) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Fail(0, FailureOf(cluster, 0, absl::StatusCode::kUnavailable, "rank 3 is gone"));
  cluster.Fail(0, FailureOf(cluster, 1, absl::StatusCode::kUnavailable, "rank 2 is gone"));
  cluster.Run(seconds(5), {0});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("node-1 was silent"));
}

TEST(FailuresTest, RanksThatAllBlameEachOtherAreNotWaitedFor) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  for (const int rank : {2, 3, 0}) {
    cluster.Fail(rank / 2, FailureOf(cluster, rank, absl::StatusCode::kUnavailable, "a peer"));
    EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STARTING);
  }
  cluster.Fail(0, FailureOf(cluster, 1, absl::StatusCode::kUnavailable, "a peer"));
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("rank 2 on node-1 failed: a peer"));
}

TEST(FailuresTest, RetryableTellsCrashesFromMistakes) {
  v1::RankFailed failure;
  failure.set_signal(6);
  failure.set_status_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_TRUE(IsRetryable(failure));
  failure.set_signal(0);
  EXPECT_FALSE(IsRetryable(failure));
  for (const absl::StatusCode code :
       {absl::StatusCode::kDataLoss, absl::StatusCode::kFailedPrecondition,
        absl::StatusCode::kInternal, absl::StatusCode::kNotFound}) {
    failure.set_status_code(static_cast<int>(code));
    EXPECT_FALSE(IsRetryable(failure)) << code;
  }
  for (const absl::StatusCode code :
       {absl::StatusCode::kOk, absl::StatusCode::kUnavailable, absl::StatusCode::kDeadlineExceeded,
        absl::StatusCode::kResourceExhausted}) {
    failure.set_status_code(static_cast<int>(code));
    EXPECT_TRUE(IsRetryable(failure)) << code;
  }
}

TEST(FailuresTest, LongTextsOfAFailureAreCut) {
  v1::RankFailed failure;
  failure.set_error(std::string(100'000, 'e'));
  for (int i = 0; i < 80; ++i) failure.add_stderr_tail(absl::StrCat(i, std::string(5000, 's')));
  const v1::RankFailed bounded = Bounded(failure);
  EXPECT_LE(bounded.ByteSizeLong(), 120'000u);
  ASSERT_EQ(bounded.stderr_tail_size(), 50);
  EXPECT_THAT(bounded.stderr_tail(0), testing::StartsWith("30sss"));
}

TEST(FailuresTest, ARankThatIsNotReadyInTimeIsNamed) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Register(0);
  cluster.Register(1);
  for (int rank = 0; rank < 3; ++rank) cluster.Ready(rank / 2, rank);
  cluster.Run(seconds(121), {0, 1});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("rank 3 on node-1 was not ready within 120 s"));
}

TEST(FailuresTest, WorkersGoneWithoutAWordEndTheGeneration) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Gone(1, 1);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("rank 2 on node-1"));
}

TEST(FailuresTest, ARankThatFinishesWhereItCannotFailsTheRun) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Finish(0, 0, 57);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  EXPECT_FALSE(cluster.Status().retryable());
}

}  // namespace
}  // namespace paceline::core
