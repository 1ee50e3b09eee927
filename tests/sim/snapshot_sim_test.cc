// Machines that take their memory along: what buddies' copies save, and what they do not.
// A failing seed is one of the test's parameters: run it alone with --gtest_filter=*/SEED.
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "tests/sim/seeds.h"
#include "tests/sim/simulation.h"

namespace paceline::sim {
namespace {

using std::chrono::milliseconds;

constexpr int kSeeds = 40;
constexpr std::int64_t kInterval = 10;

// Two stages of one copy each on nodes of their own, a spare, and no checkpoint but at step 40.
Options TwoStages(int seed) {
  Options options;
  options.seed = static_cast<std::uint64_t>(seed);
  options.nodes = 2;
  options.slots_per_node = 1;
  options.pipeline = 2;
  options.spares = 1;
  options.micro_batches_per_slot = 2;
  options.steps = 120;
  options.checkpoint_interval = 40;
  options.snapshot_interval = kInterval;
  return options;
}

auto Once(std::int64_t at, std::function<void(Simulation&)> act) {
  auto done = std::make_shared<bool>(false);
  return [=](Simulation& world, std::int64_t step) {
    if (step != at || std::exchange(*done, true)) return;
    act(world);
  };
}

Result ExpectCompleted(const Options& options) {
  Result result = Simulation(options).Run();
  EXPECT_EQ(result.trouble, "") << "seed " << options.seed << "\n" << result.status.DebugString();
  EXPECT_TRUE(result.completed) << "seed " << options.seed;
  EXPECT_EQ(result.resumes, 0) << "seed " << options.seed;
  return result;
}

TEST(BuddyTest, WhatALostMachineHeldIsTakenUpFromItsBuddy) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    for (const int victim : {0, 1}) {
      Options options = TwoStages(seed);
      options.on_step = Once(36, [victim](Simulation& world) { world.KillMachineOf(victim); });
      EXPECT_LE(ExpectCompleted(options).status.lost_steps(), 2 * kInterval) << "seed " << seed;
    }
  }
}

TEST(BuddyTest, AMachineThatIsLostWithItsBuddyCostsWhatTheCheckpointHasNot) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Options options = TwoStages(seed);
    options.on_step = Once(76, [](Simulation& world) {
      world.KillMachineOf(0);
      world.KillMachineOf(1);
    });
    const Result result = ExpectCompleted(options);
    EXPECT_GT(result.status.lost_steps(), 2 * kInterval) << "seed " << seed;
    EXPECT_LE(result.status.lost_steps(), 36) << "seed " << seed;
  }
}

// The spare that took the first one's place has begun from the copy; now it holds it itself.
TEST(BuddyTest, OneMachineAfterTheOtherIsLost) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Options options = TwoStages(seed);
    options.checkpoint_interval = 0;
    options.steps = 300;
    options.on_step = [first = Once(56, [](Simulation& world) { world.KillMachineOf(0); }),
                       second = Once(156, [](Simulation& world) { world.KillMachineOf(1); }),
                       third = Once(256, [](Simulation& world) { world.KillMachineOf(0); })](
                          Simulation& world, std::int64_t step) {
      first(world, step);
      second(world, step);
      third(world, step);
    };
    EXPECT_LE(ExpectCompleted(options).status.lost_steps(), 3 * 2 * kInterval) << "seed " << seed;
  }
}

// Machines, agents, workers, sessions and coordinators, at every layout that the nodes allow.
Options LossesOf(std::uint64_t seed) {
  Random random(seed * 15'485'863);
  Options options;
  options.seed = seed;
  options.nodes = static_cast<int>(random.Between(1, 4));
  options.spares = static_cast<int>(random.Between(0, 2));
  options.slots_per_node = static_cast<int>(random.Between(1, 3));
  if (random.OneIn(3)) options.min_nodes = static_cast<int>(random.Between(1, options.nodes));
  if (options.nodes * options.slots_per_node % 2 == 0 && !random.OneIn(3)) options.pipeline = 2;
  options.micro_batches_per_slot = static_cast<int>(random.Between(1, 3));
  options.steps = 120;
  options.checkpoint_interval = random.Between(1, 3) * 15;
  options.snapshot_interval = random.Between(1, 3) * 4;
  if (random.OneIn(2)) options.snapshots_per_omission = random.Between(2, 10);
  options.dedicated_nodes = random.OneIn(2);
  options.steps_per_agent_death = random.Between(15, 80);
  options.deaths_per_lost_machine = random.Between(1, 3);
  if (random.OneIn(2)) options.steps_per_worker_death = random.Between(15, 100);
  if (random.OneIn(3)) options.steps_per_drain = random.Between(20, 60);
  if (random.OneIn(3)) options.heartbeats_per_session_break = random.Between(10, 100);
  if (random.OneIn(3)) options.decisions_per_coordinator_death = random.Between(30, 400);
  if (random.OneIn(4)) options.starts_per_damage = random.Between(3, 6);
  return options;
}

class LossSeedsTest : public testing::TestWithParam<int> {};

TEST_P(LossSeedsTest, EveryPromiseHoldsAndTheRunIsCompleted) {
  const Options options = LossesOf(static_cast<std::uint64_t>(GetParam()));
  const Result result = Simulation(options).Run();
  EXPECT_EQ(result.trouble, "") << "seed " << options.seed << ": " << result.events << " events, "
                                << result.facts << " facts, " << result.coordinator_lives
                                << " coordinator lives, " << result.resumes << " resumes, "
                                << result.virtual_ms << " virtual ms\n"
                                << result.status.DebugString();
  EXPECT_TRUE(result.completed) << "seed " << options.seed;
}

INSTANTIATE_TEST_SUITE_P(Seeds, LossSeedsTest, testing::Range(1, SeedsOr(300) + 1));

}  // namespace
}  // namespace paceline::sim
