// Nodes that come and go under a run: what went wrong elsewhere, and what chance brings.
// A failing seed is one of the test's parameters: run it alone with --gtest_filter=*/SEED.
#include <gtest/gtest.h>

#include "tests/sim/seeds.h"
#include "tests/sim/simulation.h"

namespace paceline::sim {
namespace {

using std::chrono::milliseconds;

constexpr int kSeeds = 20;

// Does `act` once, after the run's step `at`.
auto Once(std::int64_t at, std::function<void(Simulation&)> act) {
  auto done = std::make_shared<bool>(false);
  return [=](Simulation& world, std::int64_t step) {
    if (step != at || std::exchange(*done, true)) return;
    act(world);
  };
}

void ExpectCompleted(const Options& options, int resumes = 0) {
  const Result result = Simulation(options).Run();
  EXPECT_EQ(result.trouble, "") << "seed " << options.seed << "\n" << result.status.DebugString();
  EXPECT_TRUE(result.completed) << "seed " << options.seed;
  EXPECT_EQ(result.resumes, resumes) << "seed " << options.seed;
}

// pytorch#147064: a peer that is restarted while the others still close the rendezvous makes them
// fail for good.
TEST(ScenarioTest, APeerThatRestartsWhileTheGenerationEnds) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Options options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.nodes = 3;
    options.on_step = Once(10, [seed](Simulation& world) {
      world.KillWorker(0);
      world.KillAgent(1);
      world.StartAgent(1, milliseconds(seed * 75));
    });
    ExpectCompleted(options);
  }
}

// NVRx#348: with more live agents than nodes, one of which joined again, the rendezvous closes
// for all of them.
TEST(ScenarioTest, ASpareThatJoinsTwiceWhileADeadNodeComesBack) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Options options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.spares = 2;
    options.on_step = [at_5 = Once(5,
                                   [](Simulation& world) {
                                     world.BreakSession(2);
                                     world.KillAgent(3);
                                     world.StartAgent(3, milliseconds(1));
                                   }),
                       at_10 = Once(10, [seed](Simulation& world) {
                         world.KillAgent(0);
                         world.StartAgent(0, milliseconds(seed * 40));
                         world.BreakSession(2);
                       })](Simulation& world, std::int64_t step) {
      at_5(world, step);
      at_10(world, step);
    };
    ExpectCompleted(options);
  }
}

// dlrover#1534: after a scale-down those that are left wait for the node that has gone.
TEST(ScenarioTest, ANodeThatNeverComesBackStallsNobody) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Options options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.nodes = 4;
    options.micro_batches_per_slot = 3;
    options.agents_come_back = false;
    options.on_step = [at_10 = Once(10, [](Simulation& world) { world.KillAgent(3); }),
                       at_20 = Once(20, [](Simulation& world) { world.KillAgent(0); })](
                          Simulation& world, std::int64_t step) {
      at_10(world, step);
      at_20(world, step);
    };
    ExpectCompleted(options);
  }
}

// horovod#3494: survivors wait below the minimum; when a node joins, the old ones go on and the new
// one waits for state that nobody sends.
TEST(ScenarioTest, ANewNodeJoinsSurvivorsThatWaitedBelowTheMinimum) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Options options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.min_nodes = 2;
    options.agents_come_back = false;
    options.on_step = Once(10, [seed](Simulation& world) {
      world.KillAgent(1);
      world.StartAgent(1, milliseconds(20'000 + seed * 1000));
    });
    ExpectCompleted(options);
  }
}

// What a run shrinks by it grows by again, without losing a step to the growing.
TEST(ScenarioTest, ARunGrowsAgainAtACheckpoint) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Options options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.nodes = 3;
    options.steps = 200;
    options.micro_batches_per_slot = 2;
    options.agents_come_back = false;
    options.on_step = Once(10, [](Simulation& world) {
      world.KillAgent(2);
      world.StartAgent(2, milliseconds(20'000));
    });
    const Result result = Simulation(options).Run();
    EXPECT_EQ(result.trouble, "") << "seed " << seed;
    EXPECT_TRUE(result.completed) << "seed " << seed;
    EXPECT_EQ(result.status.nodes_size(), 3) << "seed " << seed;
    EXPECT_EQ(result.status.recoveries(), 1) << "seed " << seed;
    EXPECT_LE(result.status.lost_steps(), 1) << "seed " << seed;
    EXPECT_EQ(result.status.generation(), 3u) << "seed " << seed;
  }
}

// Drains, losses, failed self-tests, spares; sessions and coordinators that break as well.
Options ChangesOf(std::uint64_t seed) {
  Random random(seed * 104'729);
  Options options;
  options.seed = seed;
  options.nodes = static_cast<int>(random.Between(1, 4));
  options.spares = static_cast<int>(random.Between(0, 2));
  options.slots_per_node = static_cast<int>(random.Between(1, 3));
  if (random.OneIn(3)) options.min_nodes = static_cast<int>(random.Between(1, options.nodes));
  if (options.nodes * options.slots_per_node % 2 == 0 && random.OneIn(2)) options.pipeline = 2;
  options.micro_batches_per_slot = static_cast<int>(random.Between(1, 3));
  options.steps = 120;
  options.checkpoint_interval = random.Between(0, 2) * 9;
  options.dedicated_nodes = random.OneIn(2);
  options.steps_per_drain = random.Between(20, 60);
  if (random.OneIn(2)) options.self_tests_per_failure = random.Between(2, 4);
  if (random.OneIn(3)) options.heartbeats_per_session_break = random.Between(20, 100);
  if (random.OneIn(3)) options.decisions_per_coordinator_death = random.Between(50, 400);
  if (options.checkpoint_interval > 0) {
    options.steps_per_agent_death = random.Between(25, 100);
    if (random.OneIn(2)) options.steps_per_worker_death = random.Between(25, 100);
  }
  if (random.OneIn(4)) options.manifests_per_failure = random.Between(3, 10);
  if (random.OneIn(4)) options.calls_per_loss = random.Between(2, 5);
  return options;
}

class ChangeSeedsTest : public testing::TestWithParam<int> {};

TEST_P(ChangeSeedsTest, EveryPromiseHoldsAndTheRunIsCompleted) {
  const Options options = ChangesOf(static_cast<std::uint64_t>(GetParam()));
  const Result result = Simulation(options).Run();
  EXPECT_EQ(result.trouble, "") << "seed " << options.seed << ": " << result.events << " events, "
                                << result.facts << " facts, " << result.coordinator_lives
                                << " coordinator lives, " << result.resumes << " resumes, "
                                << result.virtual_ms << " virtual ms\n"
                                << result.status.DebugString();
  EXPECT_TRUE(result.completed) << "seed " << options.seed;
}

INSTANTIATE_TEST_SUITE_P(Seeds, ChangeSeedsTest, testing::Range(1, SeedsOr(300) + 1));

}  // namespace
}  // namespace paceline::sim
