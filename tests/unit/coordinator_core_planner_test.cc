#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/core/planner.h"

namespace paceline::core {
namespace {

using testing::HasSubstr;

RunFile FileOf(std::int64_t nodes, std::int64_t slots) {
  RunFile file;
  file.launch.nodes = nodes;
  file.launch.slots_per_node = slots;
  file.launch.min_nodes = nodes;
  file.train.global_batch_size = 16;
  file.train.micro_batch_size = 2;
  return file;
}

TEST(PlannerTest, RanksLieNodeByNodeContiguously) {
  const Plan plan = PlanFor(FileOf(2, 2), {{NodeId{3}, 2}, {NodeId{5}, 2}, {NodeId{9}, 2}});
  ASSERT_TRUE(plan.fits);
  EXPECT_EQ(plan.layout.data(), 4);
  EXPECT_EQ(plan.layout.pipeline(), 1);
  EXPECT_EQ(plan.layout.expert(), 1);
  ASSERT_EQ(plan.placements.size(), 4u);
  const std::uint64_t nodes[] = {3, 3, 5, 5};
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(plan.placements[rank].rank(), rank);
    EXPECT_EQ(plan.placements[rank].node_id(), nodes[rank]);
    EXPECT_EQ(plan.placements[rank].slot(), rank % 2);
  }
}

TEST(PlannerTest, ABigNodeTakesNoMoreThanSlotsPerNode) {
  const Plan plan = PlanFor(FileOf(2, 2), {{NodeId{1}, 8}, {NodeId{2}, 8}});
  ASSERT_TRUE(plan.fits);
  EXPECT_EQ(plan.placements[2].node_id(), 2u);
}

TEST(PlannerTest, SmallNodesFillUpToTheWorldSize) {
  const Plan plan = PlanFor(FileOf(1, 4), {{NodeId{1}, 3}, {NodeId{2}, 3}});
  ASSERT_TRUE(plan.fits);
  EXPECT_EQ(plan.placements.size(), 4u);
  EXPECT_EQ(plan.placements[3].node_id(), 2u);
}

TEST(PlannerTest, RanksStayOnTheNodesThatAreLeft) {
  v1::GenerationStarted former;
  *former.mutable_layout() = *LayoutFor(FileOf(1, 4));
  for (int rank = 0; rank < 4; ++rank) {
    v1::RankPlacement& placement = *former.add_placements();
    placement.set_rank(rank);
    placement.set_node_id(rank < 2 ? 3 : 5);
    placement.set_slot(rank % 2);
  }
  const Plan plan = PlanFor(FileOf(2, 2), {{NodeId{1}, 2}, {NodeId{5}, 2}}, former);
  ASSERT_TRUE(plan.fits);
  const std::uint64_t nodes[] = {1, 1, 5, 5};
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(plan.placements[rank].rank(), rank);
    EXPECT_EQ(plan.placements[rank].node_id(), nodes[rank]);
    EXPECT_EQ(plan.placements[rank].slot(), rank % 2);
  }
  // Node 3 has gone and 9 comes after 5: its ranks are the first ones all the same.
  const Plan later = PlanFor(FileOf(2, 2), {{NodeId{5}, 2}, {NodeId{9}, 2}}, former);
  ASSERT_TRUE(later.fits);
  EXPECT_EQ(later.placements[0].node_id(), 9u);
  EXPECT_EQ(later.placements[2].node_id(), 5u);
}

TEST(PlannerTest, TooFewSlotsSayWhatIsMissing) {
  const Plan plan = PlanFor(FileOf(2, 2), {{NodeId{1}, 2}});
  EXPECT_FALSE(plan.fits);
  EXPECT_TRUE(plan.placements.empty());
  EXPECT_EQ(plan.reason, "waits for 4 slots (2 nodes of 2); 2 slots on 1 node are free");
}

TEST(PlannerTest, ABatchThatDoesNotSplitIsRefusedWithTheNumbers) {
  const absl::Status status = LayoutFor(FileOf(3, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("global_batch_size = 16"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("a multiple of 6"));
}

TEST(PlannerTest, TheLayoutIsTheRunFiles) {
  RunFile file = FileOf(2, 4);
  file.layout = {.pipeline = 2, .schedule = "zero-bubble", .expert = 2, .zero = 1};
  const absl::StatusOr<v1::Layout> layout = LayoutFor(file);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->pipeline(), 2);
  EXPECT_EQ(layout->data(), 4);
  EXPECT_EQ(layout->expert(), 2);
  EXPECT_EQ(layout->schedule(), "zero-bubble");
  EXPECT_EQ(layout->virtual_stages(), 1);
  EXPECT_TRUE(layout->shard_optimizer());
}

}  // namespace
}  // namespace paceline::core
