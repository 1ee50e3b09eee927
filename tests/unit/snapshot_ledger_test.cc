#include "worker/agent/snapshot_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

v1::GenerationKey Key(std::uint64_t generation) {
  v1::GenerationKey key;
  key.set_run_id("run");
  key.set_generation(generation);
  return key;
}

v1::StartGeneration Start(std::uint64_t generation, std::int64_t start_step, int data = 2) {
  v1::StartGeneration start;
  *start.mutable_key() = Key(generation);
  start.set_start_step(start_step);
  start.mutable_layout()->set_pipeline(1);
  start.mutable_layout()->set_data(data);
  return start;
}

std::vector<std::pair<int, std::int64_t>> HeldIn(const SnapshotLedger& ledger,
                                                 std::uint64_t generation) {
  std::vector<std::pair<int, std::int64_t>> held;
  const v1::GenerationGone gone = ledger.Held(Key(generation));
  for (const v1::HeldState& state : gone.held()) {
    held.emplace_back(state.rank(), state.step());
  }
  return held;
}

TEST(SnapshotLedgerTest, TheLastTwoOfEachRankAreHeld) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  for (const std::int64_t step : {10, 20, 30}) ledger.OnTaken(Key(1), 0, step);
  ledger.OnTaken(Key(1), 1, 10);
  ledger.OnTaken(Key(2), 1, 20);  // of no generation that was started here
  EXPECT_THAT(HeldIn(ledger, 1), ElementsAre(Pair(0, 20), Pair(0, 30), Pair(1, 10)));
  EXPECT_THAT(HeldIn(ledger, 2), IsEmpty());
}

TEST(SnapshotLedgerTest, WhatLiesBehindANewStartIsOfAnotherLineage) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  for (const std::int64_t step : {10, 20}) ledger.OnTaken(Key(1), 0, step);
  ledger.OnStart(Start(2, 10));
  EXPECT_THAT(HeldIn(ledger, 2), ElementsAre(Pair(0, 10)));
  EXPECT_THAT(HeldIn(ledger, 1), IsEmpty());
}

TEST(SnapshotLedgerTest, AnotherLayoutsSnapshotsAreOfNoUse) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  ledger.OnTaken(Key(1), 0, 10);
  ledger.OnStart(Start(2, 10, /*data=*/4));
  EXPECT_THAT(HeldIn(ledger, 2), IsEmpty());
}

// It was cut off while generation 2 went back further, in another layout perhaps.
TEST(SnapshotLedgerTest, WhereAGenerationWasMissedNothingIsHeld) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  ledger.OnTaken(Key(1), 0, 10);
  ledger.OnStart(Start(3, 20));
  EXPECT_THAT(HeldIn(ledger, 3), IsEmpty());
  EXPECT_EQ(ledger.Runs().size(), 1u) << "its files are still there";
}

TEST(SnapshotLedgerTest, ARankThatCouldNotBeginIsNotTrusted) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  ledger.OnTaken(Key(1), 0, 10);
  ledger.OnTaken(Key(1), 1, 10);
  ledger.Distrust(Key(1), 0);
  EXPECT_THAT(HeldIn(ledger, 1), ElementsAre(Pair(1, 10)));
}

TEST(SnapshotLedgerTest, OfWhatAFormerAgentLeftTheNewestGenerationCounts) {
  const SnapshotLedger ledger(std::vector<FoundSnapshot>{
      {"run", 2, 0, 30}, {"run", 3, 1, 20}, {"run", 2, 1, 30}, {"other", 1, 0, 5}});
  EXPECT_THAT(HeldIn(ledger, 3), ElementsAre(Pair(1, 20)));
  EXPECT_EQ(ledger.AllHeld().size(), 2u);
}

TEST(SnapshotLedgerTest, AForgottenRunHoldsNothing) {
  SnapshotLedger ledger({{"run", 1, 0, 10}});
  EXPECT_TRUE(ledger.Forget("run"));
  EXPECT_FALSE(ledger.Forget("run"));
  EXPECT_THAT(ledger.AllHeld(), IsEmpty());
}

}  // namespace
}  // namespace paceline
