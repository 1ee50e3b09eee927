#include <gtest/gtest.h>

#include "coordinator/core/stragglers.h"

namespace paceline::core {
namespace {

// Ranks 0, 1, 4, 5 are the first stage, 2, 3, 6, 7 the second.
v1::RunStatus EightRanks() {
  v1::RunStatus status;
  status.mutable_layout()->set_pipeline(2);
  status.mutable_layout()->set_data(4);
  status.mutable_layout()->set_expert(2);
  for (int rank = 0; rank < 8; ++rank) {
    v1::RankProgress& progress = *status.add_ranks();
    progress.set_rank(rank);
    progress.set_tokens(1000);
    progress.set_compute_seconds(rank / 2 % 2 == 0 ? 10 : 20);
  }
  return status;
}

TEST(StragglersTest, ARankIsComparedWithItsStage) {
  EXPECT_TRUE(StragglersOf(EightRanks()).empty());
  v1::RunStatus status = EightRanks();
  status.mutable_ranks(5)->set_compute_seconds(12);
  status.mutable_ranks(6)->set_compute_seconds(23);
  const std::vector<Straggler> stragglers = StragglersOf(status);
  ASSERT_EQ(stragglers.size(), 1u);
  EXPECT_EQ(stragglers[0].rank, 5);
  EXPECT_DOUBLE_EQ(stragglers[0].ratio, 1.2);
}

TEST(StragglersTest, ARankThatIsOneStepAheadIsNoStraggler) {
  v1::RunStatus status = EightRanks();
  status.mutable_ranks(4)->set_compute_seconds(20);
  status.mutable_ranks(4)->set_tokens(2000);
  EXPECT_TRUE(StragglersOf(status).empty());
}

TEST(StragglersTest, NothingIsToldOfAStageBeforeAllOfItHaveStepped) {
  v1::RunStatus status = EightRanks();
  status.mutable_ranks(5)->set_compute_seconds(100);
  status.mutable_ranks(0)->set_tokens(0);
  EXPECT_TRUE(StragglersOf(status).empty());
  EXPECT_TRUE(StragglersOf(v1::RunStatus()).empty());
}

}  // namespace
}  // namespace paceline::core
