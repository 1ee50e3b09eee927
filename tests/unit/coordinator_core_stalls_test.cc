// Generations that stand still: who is named, and what is no stall.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "coordinator/core/stalls.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

v1::RankProgress InOperation(int rank, const char* operation, std::uint64_t entered) {
  v1::RankProgress progress;
  progress.set_rank(rank);
  progress.set_step(5);
  progress.set_operation(operation);
  progress.set_operations_entered(entered);
  progress.set_operations_left(entered - 1);
  progress.set_phase(v1::RANK_PHASE_STEP);
  progress.set_waiting(true);
  return progress;
}

v1::RankProgress AtWork(int rank, std::uint64_t done) {
  v1::RankProgress progress = InOperation(rank, "gradients", done);
  progress.set_operations_left(done);
  progress.set_waiting(false);
  return progress;
}

// Four ranks on one node that is heard of twice a second. Budget 5 s, a step takes 1 s: the limit
// is 8 s.
class Watched {
 public:
  explicit Watched(bool same_operations = true)
      : options_{TimeoutsFor(5000), /*eval_batches=*/16, same_operations} {
    ranks = {InOperation(0, "step scalars", 31), InOperation(1, "step scalars", 31),
             InOperation(2, "step scalars", 31), InOperation(3, "step scalars", 31)};
    for (int step = 1; step <= 5; ++step) watch_.HearStep(step, 1.0);
  }

  // Telemetry of the ranks that are `silent` grows old. The first verdict.
  std::optional<Stall> Stand(milliseconds span, const std::vector<std::size_t>& silent = {}) {
    for (milliseconds done{0}; done < span; done += milliseconds(500)) {
      now_ += milliseconds(500);
      stood += milliseconds(500);
      for (const std::size_t rank : silent) {
        ranks[rank].set_telemetry_age_ms(ranks[rank].telemetry_age_ms() + 500);
      }
      if (auto stall = Heartbeat()) return stall;
    }
    return std::nullopt;
  }
  std::optional<Stall> Heartbeat() {
    watch_.Listen(options_, now_);
    for (const v1::RankProgress& rank : ranks) watch_.Hear(rank, now_);
    return watch_.Judge(options_, ranks.size(), now_);
  }
  void Step(double step_seconds) {
    for (v1::RankProgress& rank : ranks) rank.set_step(rank.step() + 1);
    watch_.HearStep(ranks[0].step(), step_seconds);
  }
  void Absence(milliseconds span) { now_ += span; }

  std::vector<v1::RankProgress> ranks;
  milliseconds stood{0};

 private:
  StallWatch::Options options_;
  StallWatch watch_;
  SteadyTime now_{seconds(1000)};
};

TEST(StallWatchTest, ARankThatHasNotEnteredWhatOthersWaitInIsNamedWithinTheLimit) {
  Watched watched;
  watched.ranks[2] = AtWork(2, 30);
  const auto stall = watched.Stand(seconds(30));
  ASSERT_TRUE(stall.has_value());
  EXPECT_EQ(stall->rank, 2);
  EXPECT_THAT(stall->known, StartsWith("has not entered \"step scalars\", which ranks 0, 1 and 3 "
                                       "have been in for 8 s"));
  EXPECT_THAT(stall->known, AllOf(HasSubstr("after step 5"), HasSubstr("the limit is 8 s (5 s + 3 "
                                                                       "x 1 s, the median step)")));
  EXPECT_LE(watched.stood, seconds(9));
}

TEST(StallWatchTest, ASilentWorkerIsNamedBeforeOneThatIsAtWork) {
  Watched watched;
  watched.ranks[1] = AtWork(1, 30);
  watched.ranks[3] = AtWork(3, 30);
  const auto stall = watched.Stand(seconds(30), {3});
  ASSERT_TRUE(stall.has_value());
  EXPECT_EQ(stall->rank, 3);
  EXPECT_THAT(stall->known, StartsWith("is silent: its agent has heard nothing of its worker for "
                                       "8.5 s, while ranks 0 and 2 have been in \"step scalars\""));
  EXPECT_THAT(stall->inferred, HasSubstr("stopped"));
}

TEST(StallWatchTest, ARankThatStaysInAnOperationThatItsPeersHaveLeftIsNamed) {
  Watched watched;
  for (const std::size_t peer : {0, 1, 3}) {
    watched.ranks[peer] = InOperation(static_cast<int>(peer), "gradient norm", 32);
  }
  const auto stall = watched.Stand(seconds(30));
  ASSERT_TRUE(stall.has_value());
  EXPECT_EQ(stall->rank, 2);
  EXPECT_THAT(stall->known, AllOf(HasSubstr("\"step scalars\""), HasSubstr("\"gradient norm\"")));
  EXPECT_THAT(stall->known, HasSubstr("every rank waits for others"));
}

// Stages wait in receives of their own, and a receive is posted while a stage computes: counts
// mean nothing between them, and neither does an operation that is entered.
TEST(StallWatchTest, OfStagesTheOneThatWaitsForNobodyIsNamed) {
  Watched watched(/*same_operations=*/false);
  watched.ranks = {InOperation(0, "activation gradients", 900), InOperation(1, "activations", 40),
                   InOperation(2, "activation gradients", 20), InOperation(3, "activations", 41)};
  watched.ranks[1].set_waiting(false);
  const auto stall = watched.Stand(seconds(30));
  ASSERT_TRUE(stall.has_value());
  EXPECT_EQ(stall->rank, 1);
  EXPECT_THAT(stall->known, HasSubstr("is in \"activations\"; ranks 0 and 2 have been in "
                                      "\"activation gradients\" for 8 s"));
}

TEST(StallWatchTest, OfSeveralAtWorkTheOneThatHasStoodLongestIsNamed) {
  Watched watched(/*same_operations=*/false);
  watched.ranks[1] = AtWork(1, 10);
  watched.ranks[3] = AtWork(3, 30);
  EXPECT_FALSE(watched.Stand(seconds(5)).has_value());
  watched.ranks[3].set_operations_entered(31);
  watched.ranks[3].set_operations_left(31);
  const auto stall = watched.Stand(seconds(30));
  ASSERT_TRUE(stall.has_value());
  EXPECT_EQ(stall->rank, 1);
}

TEST(StallWatchTest, WhereEveryRankWaitsTheOneThatLagsIsNamed) {
  Watched watched(/*same_operations=*/false);
  watched.ranks[3].set_step(4);
  const auto stall = watched.Stand(seconds(30));
  ASSERT_TRUE(stall.has_value());
  EXPECT_EQ(stall->rank, 3);
  EXPECT_THAT(stall->inferred, HasSubstr("furthest behind"));
}

TEST(StallWatchTest, AnyMovementOfAnyRankBeginsAnew) {
  Watched watched;
  watched.ranks[2] = AtWork(2, 30);
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(watched.Stand(seconds(7)).has_value());
    watched.ranks[1].set_operations_left(watched.ranks[1].operations_left() + 1);
    watched.ranks[1].set_operations_entered(watched.ranks[1].operations_entered() + 1);
  }
}

TEST(StallWatchTest, StepsThatGrowSlowerAreNoStall) {
  Watched watched;
  watched.ranks[2] = AtWork(2, 30);
  double step_seconds = 1;
  for (int step = 0; step < 60; ++step) {
    EXPECT_FALSE(watched.Stand(milliseconds(static_cast<std::int64_t>(step_seconds * 1e3))))
        << step;
    watched.Step(step_seconds);
    step_seconds *= 1.15;
  }
  EXPECT_GT(step_seconds, 4000);
}

TEST(StallWatchTest, TheAbsenceOfACoordinatorIsNoStall) {
  Watched watched;
  watched.ranks[2] = AtWork(2, 30);
  EXPECT_FALSE(watched.Stand(seconds(3)).has_value());
  watched.Absence(seconds(600));  // as if it stood still; heartbeats lie unread
  EXPECT_FALSE(watched.Heartbeat().has_value());
  EXPECT_FALSE(watched.Stand(seconds(3)).has_value());
  EXPECT_TRUE(watched.Stand(seconds(3)).has_value());
}

// Other programs take the processor: the rank gets little of it, but it gets some.
TEST(StallWatchTest, ARankThatIsShortOfProcessorTimeIsSlowAndNotStuck) {
  Watched watched;
  watched.ranks[2] = AtWork(2, 30);
  for (int i = 0; i < 80; ++i) {
    watched.ranks[2].set_cpu_seconds(watched.ranks[2].cpu_seconds() + 0.05);
    EXPECT_FALSE(watched.Stand(milliseconds(500)).has_value()) << i;
  }
  EXPECT_TRUE(watched.Stand(seconds(500)).has_value());
}

TEST(StallWatchTest, ARankThatSpinsIsStuckOnceItHasUsedMoreThanItsStepsDo) {
  Watched watched;
  watched.ranks[2] = AtWork(2, 30);
  std::optional<Stall> stall;
  for (int i = 0; i < 100 && !stall; ++i) {
    watched.ranks[2].set_cpu_seconds(watched.ranks[2].cpu_seconds() + 0.4);
    stall = watched.Stand(milliseconds(500));
  }
  ASSERT_TRUE(stall.has_value());
  EXPECT_EQ(stall->rank, 2);
  EXPECT_LE(watched.stood, seconds(12));
}

TEST(StallWatchTest, EvaluationAndCheckpointsHaveLimitsOfTheirOwn) {
  Watched evaluating;
  for (v1::RankProgress& rank : evaluating.ranks) rank.set_phase(v1::RANK_PHASE_EVALUATION);
  EXPECT_FALSE(evaluating.Stand(seconds(167)).has_value());  // 120 s + 3 x 16 x 1 s
  EXPECT_TRUE(evaluating.Stand(seconds(3)).has_value());
  Watched saving;
  saving.ranks[1].set_phase(v1::RANK_PHASE_CHECKPOINT);
  EXPECT_FALSE(saving.Stand(seconds(599)).has_value());
}

TEST(StallWatchTest, RanksWithoutAWindowAreNotJudged) {
  Watched watched;
  watched.ranks[2].set_phase(v1::RANK_PHASE_WINDOW);
  EXPECT_FALSE(watched.Stand(seconds(600)).has_value());
}

TEST(StallWatchTest, WithoutAStepTimeNothingIsJudged) {
  StallWatch watch;
  const StallWatch::Options options{TimeoutsFor(5000), 16, true};
  SteadyTime now{seconds(1000)};
  for (int i = 0; i < 100; ++i, now += milliseconds(500)) {
    watch.Listen(options, now);
    watch.Hear(AtWork(0, 3), now);
    EXPECT_FALSE(watch.Judge(options, 1, now).has_value());
  }
}

TEST(StepTimesTest, OneSlowStepDoesNotMoveTheMedian) {
  StepTimes times;
  EXPECT_EQ(times.Median(), 0);
  for (int i = 0; i < 5; ++i) times.Add(0.2);
  times.Add(100);
  times.Add(std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(times.Median(), 0.2);
}

// --- through the core ---

// Heartbeats of both nodes for `span`, each with what its two ranks tell.
void Beat(Cluster& cluster, std::vector<v1::RankProgress>& ranks, milliseconds span,
          int silent_rank = -1) {
  for (milliseconds done{0}; done < span; done += milliseconds(500)) {
    cluster.Advance(milliseconds(500));
    for (int node = 0; node < 2; ++node) {
      v1::AgentMessage message;
      v1::NodeProgress& progress = *message.mutable_heartbeat()->add_progress();
      *progress.mutable_key() = cluster.Key();
      for (int rank = 2 * node; rank < 2 * node + 2; ++rank) {
        v1::RankProgress& told = ranks[static_cast<std::size_t>(rank)];
        if (rank == silent_rank) told.set_telemetry_age_ms(told.telemetry_age_ms() + 500);
        *progress.add_ranks() = told;
      }
      if (node == 0) {
        progress.mutable_step()->set_step(ranks[0].step());
        progress.mutable_step()->set_step_seconds(0.2);
      }
      cluster.Say(node, message);
    }
    cluster.Tick();
  }
}

std::vector<v1::RankProgress> RankTwoMissing() {
  return {InOperation(0, "step scalars", 31), InOperation(1, "step scalars", 31), AtWork(2, 30),
          InOperation(3, "step scalars", 31)};
}

TEST(StallTest, TheGenerationEndsWithTheRankNodeAndOperationNamed) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  std::vector<v1::RankProgress> ranks = RankTwoMissing();
  Beat(cluster, ranks, milliseconds(5500), 2);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_RUNNING);
  Beat(cluster, ranks, milliseconds(1500), 2);
  const std::vector<v1::Fact> ended = cluster.Facts(v1::Fact::kGenerationEnded);
  ASSERT_EQ(ended.size(), 1u);
  const v1::RankFailed& failure = ended[0].generation_ended().failure();
  EXPECT_EQ(failure.rank(), 2);
  EXPECT_EQ(failure.cause(), v1::FAILURE_CAUSE_STALL);
  EXPECT_EQ(failure.status_code(), static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(ended[0].generation_ended().reason(),
              StartsWith("rank 2 on node-1 (host here) is silent: its agent has heard nothing "
                         "of its worker for 6 s, while ranks 0, 1 and 3 have been in \"step "
                         "scalars\" for"));
}

TEST(StallTest, ACoordinatorThatHasJustComeBackCountsFromThen) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  std::vector<v1::RankProgress> ranks = RankTwoMissing();
  Beat(cluster, ranks, seconds(4), 2);
  cluster.Advance(seconds(100));
  cluster.Restart();
  cluster.Register(0, 1, 2, "run");
  cluster.Register(1, 1, 2, "run");
  Beat(cluster, ranks, milliseconds(5500), 2);
  EXPECT_TRUE(cluster.Facts(v1::Fact::kGenerationEnded).empty());
  Beat(cluster, ranks, milliseconds(1500), 2);
  EXPECT_EQ(cluster.Facts(v1::Fact::kGenerationEnded).size(), 1u);
}

TEST(StallTest, NothingIsJudgedWhileANodeIsOutOfHearing) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  std::vector<v1::RankProgress> ranks = RankTwoMissing();
  Beat(cluster, ranks, seconds(5), 2);
  // Node 0 alone is heard of, until node 1's lease ends.
  for (int i = 0; i < 30 && cluster.Facts(v1::Fact::kGenerationEnded).empty(); ++i) {
    cluster.Advance(milliseconds(500));
    cluster.Progress(0, 0, 5, 0.2);
    cluster.Tick();
  }
  ASSERT_EQ(cluster.Facts(v1::Fact::kGenerationEnded).size(), 1u);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("node-1 was silent"));
}

// Ranks that tell steps alone, as before the first telemetry, are not judged by counters.
TEST(StallTest, RanksThatTellNoPhaseAreNotJudged) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  for (int i = 0; i < 200; ++i) {
    cluster.Advance(milliseconds(500));
    for (int rank = 0; rank < 4; ++rank) cluster.Progress(rank / 2, rank, 5);
    cluster.Tick();
  }
  EXPECT_TRUE(cluster.Facts(v1::Fact::kGenerationEnded).empty());
}

}  // namespace
}  // namespace paceline::core
