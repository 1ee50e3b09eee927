// The real coordinator core among simulated agents. A failing seed is one of the test's
// parameters: run it alone with --gtest_filter=*/FaultSeedsTest.*/SEED.
#include <gtest/gtest.h>

#include <iostream>

#include "tests/sim/seeds.h"
#include "tests/sim/simulation.h"

namespace paceline::sim {
namespace {

TEST(ThousandAgentsTest, EightThousandRanksTrainToTheEnd) {
  Options options;
  options.seed = 20'250'101;
  options.nodes = 1000;
  options.slots_per_node = 8;
  options.steps = 40;
  options.checkpoint_interval = 20;
  options.events_per_replay_check = 20'000;
  std::cout << "seed " << options.seed << "\n";
  const Result result = Simulation(options).Run();
  std::cout << result.events << " events, " << result.facts << " facts, "
            << result.virtual_ms / 1000.0 << " virtual seconds\n";
  EXPECT_EQ(result.trouble, "");
  EXPECT_TRUE(result.completed);
  EXPECT_EQ(result.status.ranks_size(), 8000);
  EXPECT_EQ(result.status.checkpoint_step(), 40);
  EXPECT_EQ(result.status.tokens(), 40 * 8000 * 16);
  EXPECT_GT(result.status.cost(), 0);
}

TEST(CleanRunTest, NothingIsLostAndTheLastRecordIsIn) {
  Options options;
  options.seed = 5;
  const Result result = Simulation(options).Run();
  EXPECT_EQ(result.trouble, "");
  EXPECT_EQ(result.status.state(), v1::RUN_STATE_COMPLETED);
  EXPECT_EQ(result.status.step().step(), options.steps);
  EXPECT_EQ(result.status.lost_steps(), 0);
  EXPECT_EQ(result.status.lost_tokens(), 0);
  EXPECT_EQ(result.status.recoveries(), 0);
  EXPECT_EQ(result.resumes, 0);
}

// Four data-parallel copies: a worker's death costs the step that was under way, at most, also
// while nodes are quarantined for it, and while the last checkpoint is written.
TEST(RecoveryTest, ADeadWorkerCostsAtMostOneStep) {
  std::int64_t recoveries = 0;
  int quarantines = 0;
  const int seeds = SeedsOr(400);
  for (int seed = 1; seed <= seeds; ++seed) {
    Options options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.steps_per_worker_death = 15;
    const Result result = Simulation(options).Run();
    EXPECT_EQ(result.trouble, "") << "seed " << seed;
    EXPECT_EQ(result.resumes, 0) << "seed " << seed;
    EXPECT_LE(result.status.lost_steps(), result.status.recoveries()) << "seed " << seed;
    recoveries += result.status.recoveries();
    quarantines += result.quarantines;
  }
  EXPECT_GT(recoveries, seeds);
  EXPECT_GT(quarantines, seeds / 10);
}

// What goes wrong is drawn from the seed as well, so that seeds differ in kind.
Options FaultsOf(std::uint64_t seed) {
  Random random(seed * 7919);
  Options options;
  options.seed = seed;
  options.nodes = static_cast<int>(random.Between(1, 4));
  options.slots_per_node = static_cast<int>(random.Between(1, 3));
  options.checkpoint_interval = random.Between(0, 3) * 7;
  options.keep = random.Between(1, 3);
  options.dedicated_nodes = random.OneIn(2);
  if (random.OneIn(2)) options.heartbeats_per_session_break = random.Between(5, 60);
  if (random.OneIn(2)) options.decisions_per_coordinator_death = random.Between(20, 300);
  // Without checkpoints on the way a run that keeps failing never ends.
  if (options.checkpoint_interval > 0) {
    if (random.OneIn(2)) options.steps_per_agent_death = random.Between(15, 200);
    if (random.OneIn(2)) options.steps_per_worker_death = random.Between(15, 200);
    if (random.OneIn(3)) options.manifests_per_failure = random.Between(3, 10);
    if (random.OneIn(3)) options.starts_per_damage = random.Between(2, 6);
  }
  if (random.OneIn(2)) options.calls_per_loss = random.Between(2, 5);
  if (random.OneIn(3)) options.stop_at_step = random.Between(1, options.steps - 1);
  return options;
}

class FaultSeedsTest : public testing::TestWithParam<int> {};

TEST_P(FaultSeedsTest, EveryPromiseHoldsAndTheRunIsCompleted) {
  const Options options = FaultsOf(static_cast<std::uint64_t>(GetParam()));
  const Result result = Simulation(options).Run();
  EXPECT_EQ(result.trouble, "") << "seed " << options.seed << ": " << result.events << " events, "
                                << result.facts << " facts, " << result.coordinator_lives
                                << " coordinator lives, " << result.resumes << " resumes, "
                                << result.virtual_ms << " virtual ms\n"
                                << result.status.DebugString();
  EXPECT_TRUE(result.completed) << "seed " << options.seed;
}

INSTANTIATE_TEST_SUITE_P(Seeds, FaultSeedsTest, testing::Range(1, SeedsOr(400) + 1));

TEST(DeterminismTest, TheSameSeedGivesTheSameHistory) {
  const Options options = FaultsOf(17);
  const Result first = Simulation(options).Run();
  const Result second = Simulation(options).Run();
  EXPECT_EQ(first.events, second.events);
  EXPECT_EQ(first.facts, second.facts);
  EXPECT_EQ(first.virtual_ms, second.virtual_ms);
  EXPECT_EQ(first.status.SerializeAsString(), second.status.SerializeAsString());
}

}  // namespace
}  // namespace paceline::sim
