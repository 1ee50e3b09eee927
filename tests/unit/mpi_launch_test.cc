// What the launching of MPI jobs decides by itself; the jobs are in mpi_test.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/mpi/restarts.h"
#include "worker/mpi/node_agent.h"
#include "worker/mpi/placement.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;

std::vector<std::vector<int>> Places(const std::vector<int>& hosts, int slots_per_node) {
  std::vector<std::vector<int>> places;
  for (const MpiPlace& place : PlacesOf(hosts, slots_per_node)) {
    places.push_back({place.node, place.slot, place.leader});
  }
  return places;
}

using Place = std::vector<int>;  // node, slot, leader

TEST(MpiPlacementTest, RanksFillTheSlotsOfTheirMachine) {
  EXPECT_THAT(Places({0, 0, 2, 2}, 2),
              ElementsAre(Place{0, 0, 0}, Place{0, 1, 0}, Place{1, 0, 2}, Place{1, 1, 2}));
}

TEST(MpiPlacementTest, MachineWithMoreRanksThanSlotsCountsAsSeveralNodes) {
  EXPECT_THAT(Places({0, 0, 0, 0}, 2),
              ElementsAre(Place{0, 0, 0}, Place{0, 1, 0}, Place{1, 0, 2}, Place{1, 1, 2}));
}

// mpirun --map-by node
TEST(MpiPlacementTest, RanksDealtOverMachinesInTurnKeepTheirMachine) {
  EXPECT_THAT(Places({0, 1, 0, 1}, 2),
              ElementsAre(Place{0, 0, 0}, Place{1, 0, 1}, Place{0, 1, 0}, Place{1, 1, 1}));
}

TEST(MpiPlacementTest, MachineWithFewerRanksThanSlotsLeavesSlotsFree) {
  EXPECT_THAT(Places({0, 1, 1}, 2), ElementsAre(Place{0, 0, 0}, Place{1, 0, 1}, Place{1, 1, 1}));
}

TEST(NodeAgentTest, EnvironmentOfTheJobIsToldFromTheRest) {
  EXPECT_TRUE(IsOfMpiJob("OMPI_COMM_WORLD_RANK=3"));
  EXPECT_TRUE(IsOfMpiJob("PMIX_RANK=3"));
  EXPECT_FALSE(IsOfMpiJob("PATH=/bin:/opt/OMPI_X"));
  EXPECT_FALSE(IsOfMpiJob("HOME=/root"));
}

TEST(MpiRestartsTest, JobsThatCommitNothingAreStartedThreeTimes) {
  MpiRestarts restarts;
  for (int job = 0; job < MpiRestarts::kMaxWithoutProgress; ++job) EXPECT_TRUE(restarts.Allow(0));
  EXPECT_FALSE(restarts.Allow(0));
}

TEST(MpiRestartsTest, ANewCommitCountsAnew) {
  MpiRestarts restarts;
  for (int job = 0; job < MpiRestarts::kMaxWithoutProgress; ++job) EXPECT_TRUE(restarts.Allow(10));
  EXPECT_TRUE(restarts.Allow(20));
  EXPECT_EQ(restarts.without_progress(), 1);
  EXPECT_TRUE(restarts.Allow(20));
  EXPECT_TRUE(restarts.Allow(20));
  EXPECT_FALSE(restarts.Allow(20));
}

}  // namespace
}  // namespace paceline
