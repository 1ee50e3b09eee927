#include <gtest/gtest.h>

#include <map>

#include "coordinator/core/costs.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(CostsTest, ASlotHourCostsItsRate) {
  EXPECT_DOUBLE_EQ(AmountOf(1, 3'600'000, 2.0), 2.0);
  EXPECT_DOUBLE_EQ(AmountOf(4, 900'000, 2.0), 2.0);
  EXPECT_DOUBLE_EQ(AmountOf(4, 0, 2.0), 0.0);
}

// Every incarnation's charges join without a gap from its joining on, and end at a heartbeat.
void ExpectChargesJoin(const Cluster& cluster) {
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::int64_t> until;
  for (const v1::Fact& fact : cluster.facts) {
    if (fact.has_node_joined()) {
      until[{fact.node_joined().node_id(), fact.node_joined().node().incarnation()}] = fact.at_ms();
    }
    if (!fact.has_charge_posted()) continue;
    const v1::ChargePosted& charge = fact.charge_posted();
    std::int64_t& end = until.at({charge.node_id(), charge.incarnation()});
    EXPECT_EQ(charge.from_ms(), end);
    EXPECT_GT(charge.to_ms(), charge.from_ms());
    end = charge.to_ms();
  }
}

TEST(CostsTest, ALostNodeIsChargedUpToItsLastHeartbeat) {
  Cluster cluster;
  cluster.StartFourRanks();
  const std::int64_t start = cluster.now().wall_ms;
  cluster.Run(seconds(5), {0, 1});
  cluster.Run(seconds(20), {0});  // node 1 is silent
  ExpectChargesJoin(cluster);
  std::int64_t charged = 0;
  for (const v1::Fact& fact : cluster.Facts(v1::Fact::kChargePosted)) {
    if (fact.charge_posted().node_id() != 2) continue;
    charged += fact.charge_posted().to_ms() - fact.charge_posted().from_ms();
    EXPECT_LE(fact.charge_posted().to_ms(), start + 5000);
    EXPECT_EQ(fact.charge_posted().run_id(), "run");
    EXPECT_EQ(fact.charge_posted().member(), "uni-a");
  }
  EXPECT_EQ(charged, 5000);
}

TEST(CostsTest, RunCostIsTheSumOfItsChargesAndGrowsWithHeartbeats) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Run(seconds(25), {0, 1});
  double posted = 0;
  for (const v1::Fact& fact : cluster.Facts(v1::Fact::kChargePosted)) {
    posted += fact.charge_posted().amount();
  }
  EXPECT_DOUBLE_EQ(cluster.TheRun().cost, posted);
  // 4 slots, 25 s, 3.6 a slot-hour; the last seconds are not posted yet.
  EXPECT_NEAR(cluster.Status().cost(), 4 * 25 / 3600.0 * 3.6, 1e-9);
  EXPECT_LT(posted, cluster.Status().cost());
  ExpectChargesJoin(cluster);
}

TEST(CostsTest, IdleTimeBeforeTheRunIsNotTheRuns) {
  Cluster cluster;
  cluster.Register(0, 1, 2);  // serves any run
  cluster.Run(seconds(30), {0});
  cluster.Submit(SubmissionOf("submit", RunFileText(1, 2, 100)));
  ASSERT_EQ(cluster.Status().state(), v1::RUN_STATE_STARTING);
  cluster.Run(seconds(5), {0});
  EXPECT_NEAR(cluster.Status().cost(), 2 * 5 / 3600.0 * 3.6, 1e-9);
  ExpectChargesJoin(cluster);
  const v1::ChargePosted idle = cluster.Facts(v1::Fact::kChargePosted)[0].charge_posted();
  EXPECT_EQ(idle.run_id(), "");
  EXPECT_EQ(idle.amount(), 0);
}

TEST(CostsTest, ANewIncarnationsChargesBeginAtItsJoining) {
  Cluster cluster;
  cluster.Register(0, 1);
  cluster.Run(seconds(3), {0});
  cluster.Advance(milliseconds(700));
  cluster.Register(0, 2);
  cluster.Run(seconds(3), {0});
  cluster.Register(0, 3);
  ExpectChargesJoin(cluster);
  ASSERT_EQ(cluster.Facts(v1::Fact::kChargePosted).size(), 2u);
  EXPECT_EQ(cluster.Facts(v1::Fact::kChargePosted)[0].charge_posted().to_ms() -
                cluster.Facts(v1::Fact::kChargePosted)[0].charge_posted().from_ms(),
            3000);
}

TEST(CostsTest, TheCoordinatorsAbsenceIsChargedOnceTheNodeIsHeardAgain) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Run(seconds(2), {0, 1});
  cluster.Advance(seconds(60));
  cluster.Restart();
  EXPECT_LE(cluster.Status().cost(), 4 * 2 / 3600.0 * 3.6 + 1e-12);  // nobody was heard since
  cluster.Register(0, 1, 2, "run");
  cluster.Register(1, 1, 2, "run");
  EXPECT_NEAR(cluster.Status().cost(), 4 * 62 / 3600.0 * 3.6, 1e-9);
  cluster.Run(seconds(11), {0, 1});
  ExpectChargesJoin(cluster);
}

TEST(CostsTest, AWallClockThatJumpsChargesNothing) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Run(seconds(2), {0, 1});
  const double before = cluster.Status().cost();
  cluster.JumpWallClock(std::chrono::hours(24 * 365));
  cluster.Heartbeat(0);
  cluster.JumpWallClock(-std::chrono::hours(48 * 365));
  cluster.Heartbeat(0);
  EXPECT_DOUBLE_EQ(cluster.Status().cost(), before);
}

// The coordinator may die again before it charges by the clock, and the run may end before the node
// is heard of again.
TEST(CostsTest, WhatRanUpDuringAnOutageIsChargedWhenTheNodeComesBack) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Run(std::chrono::seconds(3), {0, 1});
  cluster.Restart();
  cluster.Advance(std::chrono::seconds(2));
  cluster.Register(1, 1, 2, "run");
  ASSERT_EQ(cluster.last.facts.size(), 1u);
  const v1::ChargePosted charge = cluster.last.facts[0].charge_posted();
  EXPECT_EQ(charge.node_id(), 2u);
  EXPECT_EQ(charge.to_ms(), cluster.now().wall_ms);
}

}  // namespace
}  // namespace paceline::core
