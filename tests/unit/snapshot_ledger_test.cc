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

// Of a node that has ranks 0 and 1.
v1::StartGeneration Start(std::uint64_t generation, std::int64_t start_step, bool live = true) {
  v1::StartGeneration start;
  *start.mutable_key() = Key(generation);
  start.set_start_step(start_step);
  start.set_live(live);
  for (const int rank : {0, 1}) start.add_assignments()->set_rank(rank);
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
  EXPECT_FALSE(ledger.OnStart(Start(2, 10)));
  EXPECT_THAT(HeldIn(ledger, 2), ElementsAre(Pair(0, 10)));
  EXPECT_THAT(HeldIn(ledger, 1), IsEmpty());
}

// Another layout perhaps, or a lineage that ends earlier.
TEST(SnapshotLedgerTest, AGenerationFromTheDiskHasNoUseForWhatIsHeld) {
  SnapshotLedger ledger({});
  EXPECT_FALSE(ledger.OnStart(Start(1, 0, /*live=*/false))) << "nothing lies here";
  ledger.OnTaken(Key(1), 0, 10);
  EXPECT_TRUE(ledger.OnStart(Start(2, 10, /*live=*/false)));
  EXPECT_THAT(HeldIn(ledger, 2), IsEmpty());
}

// It was cut off while generation 2 went back further, in another layout perhaps.
TEST(SnapshotLedgerTest, WhereAGenerationWasMissedNothingIsHeld) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  ledger.OnTaken(Key(1), 0, 10);
  EXPECT_TRUE(ledger.OnStart(Start(3, 20)));
  EXPECT_THAT(HeldIn(ledger, 3), IsEmpty());
}

TEST(SnapshotLedgerTest, CopiesAreHeldAsOnesOwnAre) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  ledger.OnTaken(Key(1), 0, 10);
  for (const std::int64_t step : {10, 20, 30}) ledger.OnCopied(Key(1), 5, step);
  EXPECT_THAT(HeldIn(ledger, 1), ElementsAre(Pair(0, 10), Pair(5, 20), Pair(5, 30)));
  EXPECT_EQ(ledger.Find(Key(1), 0, 10), SnapshotPlace::kOwn);
  EXPECT_EQ(ledger.Find(Key(1), 5, 30), SnapshotPlace::kCopy);
  EXPECT_EQ(ledger.Find(Key(1), 5, 10), SnapshotPlace::kNowhere);
  ledger.OnLost(Key(1), 5, 20);
  EXPECT_THAT(HeldIn(ledger, 1), ElementsAre(Pair(0, 10), Pair(5, 30)));
}

// Where ranks were numbered anew, what the former ones left must not stay for ever, and not go
// while a failure could still make it wanted.
TEST(SnapshotLedgerTest, FilesOfOthersRanksGoWhenTheNodesOwnHaveMovedOn) {
  SnapshotLedger ledger({});
  ledger.OnStart(Start(1, 0));
  for (const int rank : {0, 1}) ledger.OnTaken(Key(1), rank, 10);
  for (const int rank : {5, 6}) ledger.OnCopied(Key(1), rank, 10);
  v1::StartGeneration next = Start(2, 10);
  next.mutable_assignments(1)->set_rank(2);
  next.add_copies()->set_rank(6);
  EXPECT_FALSE(ledger.OnStart(next));
  EXPECT_TRUE(ledger.OnTaken(Key(2), 0, 20).empty()) << "step 10 may be wanted";
  const std::vector<SnapshotFiles> stale = ledger.OnTaken(Key(2), 0, 30);
  ASSERT_EQ(stale.size(), 2u);
  EXPECT_EQ(stale[0].rank, 1);
  EXPECT_FALSE(stale[0].copies);
  EXPECT_EQ(stale[1].rank, 5);
  EXPECT_TRUE(stale[1].copies);
  EXPECT_THAT(HeldIn(ledger, 2), ElementsAre(Pair(0, 20), Pair(0, 30), Pair(6, 10)));
}

TEST(SnapshotLedgerTest, OfWhatAFormerAgentLeftTheNewestGenerationCounts) {
  const SnapshotLedger ledger(std::vector<FoundSnapshot>{{"run", 2, 0, 30},
                                                         {"run", 3, 1, 20},
                                                         {"run", 2, 1, 30},
                                                         {"other", 1, 0, 5},
                                                         {"run", 3, 7, 10, /*copy=*/true}});
  EXPECT_THAT(HeldIn(ledger, 3), ElementsAre(Pair(1, 20), Pair(7, 10)));
  EXPECT_EQ(ledger.AllHeld().size(), 2u);
}

TEST(SnapshotLedgerTest, AForgottenRunHoldsNothing) {
  SnapshotLedger ledger({{"run", 1, 0, 10}});
  EXPECT_FALSE(ledger.Forget(Key(0))) << "it has trained here since";
  EXPECT_TRUE(ledger.Forget(Key(1)));
  EXPECT_FALSE(ledger.Forget(Key(1)));
  EXPECT_THAT(ledger.AllHeld(), IsEmpty());
}

}  // namespace
}  // namespace paceline
