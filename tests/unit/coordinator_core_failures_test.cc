// Failures of ranks and nodes: who is to blame, and what becomes of the run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("node-1 was silent"));
  EXPECT_TRUE(cluster.Status().retryable());
  EXPECT_EQ(cluster.Facts(v1::Fact::kGenerationEnded).size(), 1u);
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
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  EXPECT_EQ(cluster.Status().reason(), "rank 0 on node-0 failed: all_reduce: 120 s");
}

// An agent's death takes its ranks along, and nobody is left to tell of them.
TEST(FailuresTest, TheNodeThatDiedIsNamedNotTheSurvivorsThatBlameItsRanks) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Fail(0, FailureOf(cluster, 0, absl::StatusCode::kUnavailable, "rank 3 is gone"));
  cluster.Fail(0, FailureOf(cluster, 1, absl::StatusCode::kUnavailable, "rank 2 is gone"));
  cluster.Run(seconds(5), {0});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
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
  EXPECT_EQ(cluster.Status().reason(), "rank 2 on node-1 failed: a peer");
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
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("rank 3 on node-1 was not ready within 120 s"));
}

TEST(FailuresTest, WorkersGoneWithoutAWordEndTheGeneration) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Gone(1, 1);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
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
