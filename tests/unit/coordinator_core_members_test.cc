// Which nodes a run goes on with: spares, fewer nodes, more again, drains and quarantine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "coordinator/core/planner.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using Kind = v1::CoordinatorMessage;

v1::RankFailed KilledOn(const Cluster& cluster, int rank) {
  v1::RankFailed failed = FailureOf(cluster, rank, absl::StatusCode::kOk, "");
  failed.set_signal(9);
  return failed;
}

std::set<std::uint64_t> NodesOf(const Cluster& cluster) {
  std::set<std::uint64_t> nodes;
  for (const v1::RankPlacement& rank : cluster.TheRun().plan.placements()) {
    nodes.insert(rank.node_id());
  }
  return nodes;
}

v1::NodeStatus NodeOf(const Cluster& cluster, const std::string& name) {
  for (const v1::NodeStatus& node : const_cast<Cluster&>(cluster).core().ListNodes(cluster.now())) {
    if (node.name() == name) return node;
  }
  return {};
}

void Drain(Cluster& cluster, const std::string& node, const std::string& request = "drain") {
  v1::DrainNodeRequest drain;
  drain.set_request_id(request);
  drain.set_node(node);
  drain.set_reason("a fan is loud");
  cluster.Decide(DrainNodeCalled{CallId{900}, drain});
}

void Undrain(Cluster& cluster, const std::string& node) {
  v1::UndrainNodeRequest undrain;
  undrain.set_request_id("undrain");
  undrain.set_node(node);
  cluster.Decide(UndrainNodeCalled{CallId{901}, undrain});
}

void PassSelfTest(Cluster& cluster, int node, std::uint64_t id, const std::string& error = "") {
  v1::AgentMessage message;
  message.mutable_self_test_done()->set_id(id);
  message.mutable_self_test_done()->set_error(error);
  cluster.Say(node, message);
}

// The ranks of the cluster's generation end it at `step`, as they were asked to, and leave with
// what they hold.
void Move(Cluster& cluster, const std::map<int, std::vector<int>>& ranks_of, std::int64_t step) {
  const std::uint64_t generation = cluster.Status().generation();
  const auto batch = static_cast<int>(cluster.TheRun().file.train.global_batch_size);
  for (const auto& [node, ranks] : ranks_of) {
    for (const int rank : ranks) {
      cluster.Part(node, cluster.PartOf(rank, step, batch));
      cluster.Finish(node, rank, step, /*stopped=*/true);
    }
  }
  cluster.ManifestDone(step);
  for (const auto& [node, ranks] : ranks_of) cluster.Progress(node, ranks.front(), step);
  for (const auto& [node, ranks] : ranks_of) {
    std::map<int, std::int64_t> held;
    for (const int rank : ranks) held[rank] = step;
    cluster.Gone(node, generation, held);
  }
}

TEST(SparesTest, ASpareTakesADeadNodesPlaceAtOnceAtTheSameLayout) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10", "spares = 1");
  cluster.Register(2, 1, 2, "run");
  EXPECT_EQ(NodeOf(cluster, "node-2").state(), v1::NODE_STATE_SPARE);
  cluster.Progress(0, 0, 3);
  cluster.Run(seconds(5), {0, 2});  // the lease of node-1 ends
  cluster.Gone(0, 1, {{0, 3}, {1, 3}});
  EXPECT_EQ(cluster.Status().generation(), 2u);
  EXPECT_EQ(NodesOf(cluster), (std::set<std::uint64_t>{1, 3}));
  EXPECT_EQ(cluster.TheRun().plan.layout().data(), 4);
  EXPECT_TRUE(cluster.TheRun().plan.live()) << "node-0 holds a copy of all";
  EXPECT_EQ(cluster.Status().lost_steps(), 0);
  EXPECT_EQ(NodeOf(cluster, "node-1").state(), v1::NODE_STATE_LOST);
}

// NVRx#348: a spare that joined twice was counted twice.
TEST(SparesTest, ASpareThatJoinsTwiceIsOneNode) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10", "spares = 1");
  cluster.Register(2, 1, 2, "run");
  cluster.Register(2, 1, 2, "run");  // another session
  cluster.Register(2, 2, 2, "run");  // another process
  cluster.Progress(0, 0, 3);
  cluster.Fail(1, KilledOn(cluster, 3));
  cluster.Gone(0, 1);
  cluster.Gone(1, 1);
  EXPECT_EQ(cluster.Status().generation(), 2u);
  std::set<std::pair<std::uint64_t, std::int32_t>> slots;
  for (const v1::RankPlacement& rank : cluster.TheRun().plan.placements()) {
    EXPECT_TRUE(slots.insert({rank.node_id(), rank.slot()}).second);
  }
  EXPECT_EQ(slots.size(), 4u);
}

TEST(ShrinkTest, ANodeThatStaysAwayIsGoneOnWithout) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Progress(0, 0, 3);
  cluster.Run(seconds(5), {0});
  cluster.Gone(0, 1, {{0, 3}, {1, 3}});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING) << "it may come back";
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("goes on with 2 ranks on 1 node"));
  cluster.Run(seconds(10), {0});  // 2 x budget
  EXPECT_EQ(cluster.Status().generation(), 2u);
  EXPECT_EQ(cluster.TheRun().plan.layout().data(), 2);
  EXPECT_TRUE(cluster.TheRun().plan.live()) << "the slices match";
  EXPECT_EQ(cluster.TheRun().plan.start_step(), 3);
  EXPECT_EQ(cluster.Status().nodes_size(), 1);
  EXPECT_EQ(cluster.Status().nodes_asked(), 2);
}

TEST(ShrinkTest, TheCopyThatIsLeftGoesOnUnderOtherRanks) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Progress(1, 2, 3);
  cluster.Run(seconds(5), {1});
  cluster.Gone(1, 1, {{2, 3}, {3, 3}});
  cluster.Run(seconds(11), {1});
  EXPECT_EQ(cluster.Status().generation(), 2u);
  EXPECT_EQ(NodesOf(cluster), std::set<std::uint64_t>{2});
  EXPECT_TRUE(cluster.TheRun().plan.live());
  EXPECT_TRUE(cluster.TheRun().plan.transfers().empty());
}

TEST(ShrinkTest, BelowMinNodesTheRunWaitsAndSaysSo) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10", "min_nodes = 2");
  cluster.Run(seconds(60), {0});
  cluster.Gone(0, 1);
  cluster.Run(seconds(600), {0});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("waits for 4 slots (2 nodes of 2)"));
}

TEST(ShrinkTest, ARunThatBeginsWaitsForAllOfItsNodesFirst) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Register(0, 1, 2, "run");
  cluster.Run(seconds(115), {0});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  cluster.Run(seconds(10), {0});
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STARTING);
  EXPECT_EQ(cluster.TheRun().plan.layout().data(), 2);
}

class GrowTest : public testing::Test {
 protected:
  // On node-0 alone, at step 4; node-1 is back.
  void SetUp() override {
    cluster_.StartFourRanks(100);
    cluster_.Progress(0, 0, 3);
    cluster_.Run(seconds(5), {0});
    cluster_.Gone(0, 1, {{0, 3}, {1, 3}});
    cluster_.Run(seconds(11), {0});
    ASSERT_EQ(cluster_.Status().generation(), 2u);
    for (const int rank : {0, 1}) cluster_.Ready(0, rank);
    cluster_.Progress(0, 0, 4);
    cluster_.Register(1, 2, 2, "run");
  }
  Cluster cluster_;
};

TEST_F(GrowTest, ANodeThatHasPassedItsTestIsTakenInAtTheNextCheckpoint) {
  const auto tests = cluster_.Sent(1, Kind::kSelfTest);
  ASSERT_EQ(tests.size(), 1u);
  EXPECT_EQ(tests[0].self_test().folder(), "/runs/run/checkpoints");
  EXPECT_TRUE(cluster_.Status().move_reason().empty());
  PassSelfTest(cluster_, 1, tests[0].self_test().id());
  const auto stops = cluster_.Sent(0, Kind::kStop);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_TRUE(stops[0].stop().moves());
  EXPECT_TRUE(stops[0].stop().at_checkpoint());
  EXPECT_THAT(cluster_.Status().reason(), HasSubstr("moves at its next checkpoint"));
  Move(cluster_, {{0, {0, 1}}}, 10);
  EXPECT_EQ(cluster_.Status().generation(), 3u);
  EXPECT_EQ(cluster_.TheRun().plan.layout().data(), 4);
  EXPECT_EQ(cluster_.TheRun().plan.start_step(), 10);
  EXPECT_TRUE(cluster_.TheRun().plan.live());
  EXPECT_EQ(cluster_.TheRun().plan.transfers_size(), 2) << "to the newcomer's ranks";
  EXPECT_EQ(cluster_.Status().lost_steps(), 0);
  EXPECT_EQ(cluster_.Status().recoveries(), 1) << "only the failure's";
}

TEST_F(GrowTest, ANodeThatFailsItsTestThriceIsQuarantined) {
  std::uint64_t id = cluster_.Sent(1, Kind::kSelfTest)[0].self_test().id();
  for (int failure = 1; failure <= 2; ++failure) {  // the lost lease was the first
    PassSelfTest(cluster_, 1, id, "a product came out wrong");
    for (int i = 0; i < 60 && cluster_.Sent(1, Kind::kSelfTest).empty(); ++i) {
      cluster_.Run(milliseconds(500), {0, 1});
    }
    if (failure == 2) break;
    ASSERT_EQ(cluster_.Sent(1, Kind::kSelfTest).size(), 1u);
    id = cluster_.Sent(1, Kind::kSelfTest)[0].self_test().id();
  }
  EXPECT_EQ(NodeOf(cluster_, "node-1").state(), v1::NODE_STATE_QUARANTINED);
  EXPECT_THAT(NodeOf(cluster_, "node-1").reason(), HasSubstr("3 failures within an hour"));
  EXPECT_THAT(NodeOf(cluster_, "node-1").reason(), HasSubstr("a product came out wrong"));
  EXPECT_TRUE(cluster_.Status().move_reason().empty());
  Undrain(cluster_, "node-1");
  EXPECT_EQ(NodeOf(cluster_, "node-1").state(), v1::NODE_STATE_SPARE);
  EXPECT_EQ(NodeOf(cluster_, "node-1").failures(), 0);
}

// Neither a newcomer that nobody has tested nor one that has failed comes in with a third that has
// passed.
TEST(GrowthTest, OnlyTestedNodesAreTakenIn) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(4, 1, 100, "interval_steps = 10")));
  for (int node = 0; node < 4; ++node) cluster.Register(node, 1, 1, "run");
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank, rank);
  cluster.Progress(0, 0, 3);
  cluster.Run(seconds(5), {0});
  cluster.Gone(0, 1, {{0, 3}});
  cluster.Run(seconds(11), {0});
  cluster.Register(0, 1, 1, "run");
  ASSERT_EQ(cluster.Status().generation(), 1u) << "half of its nodes are asked for";
  cluster.Register(1, 2, 1, "run");
  cluster.Run(seconds(11), {0, 1});
  ASSERT_EQ(cluster.Status().generation(), 2u);
  for (const int rank : {0, 1}) cluster.Ready(rank, rank);
  cluster.Progress(0, 0, 4);
  cluster.Register(4, 1, 1, "run");
  const auto first = cluster.Sent(4, Kind::kSelfTest);
  ASSERT_EQ(first.size(), 1u);
  PassSelfTest(cluster, 4, first[0].self_test().id(), "a product came out wrong");
  cluster.Register(5, 1, 1, "run");
  const auto second = cluster.Sent(5, Kind::kSelfTest);
  ASSERT_EQ(second.size(), 1u);
  PassSelfTest(cluster, 5, second[0].self_test().id());
  ASSERT_EQ(cluster.Sent(0, Kind::kStop).size(), 1u);
  cluster.Register(6, 1, 1, "run");
  Move(cluster, {{0, {0}}, {1, {1}}}, 10);
  ASSERT_EQ(cluster.Status().generation(), 3u);
  std::set<std::string> names;
  const v1::RunStatus status = cluster.Status();
  for (const v1::NodeStatus& node : status.nodes()) names.insert(node.name());
  EXPECT_EQ(names, (std::set<std::string>{"node-0", "node-1", "node-5"}));
}

TEST_F(GrowTest, WhatCannotBeCommittedMovesWithTheRanks) {
  PassSelfTest(cluster_, 1, cluster_.Sent(1, Kind::kSelfTest)[0].self_test().id());
  for (const int rank : {0, 1}) {
    cluster_.Part(0, cluster_.PartOf(rank, 10, 4));
    cluster_.Finish(0, rank, 10, /*stopped=*/true);
  }
  cluster_.ManifestDone(10, absl::ResourceExhaustedError("no space left on device"));
  cluster_.Progress(0, 0, 10);
  EXPECT_EQ(cluster_.Status().state(), v1::RUN_STATE_WAITING);
  cluster_.Gone(0, 2, {{0, 10}, {1, 10}});
  EXPECT_EQ(cluster_.Status().generation(), 3u);
  EXPECT_TRUE(cluster_.TheRun().plan.live());
  EXPECT_EQ(cluster_.TheRun().plan.start_step(), 10);
  EXPECT_EQ(cluster_.Status().lost_steps(), 0);
}

TEST_F(GrowTest, ACoordinatorThatDiesInBetweenAsksAgain) {
  PassSelfTest(cluster_, 1, cluster_.Sent(1, Kind::kSelfTest)[0].self_test().id());
  cluster_.Restart();
  cluster_.Register(0, 1, 2, "run");
  const auto stops = cluster_.Sent(0, Kind::kStop);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_TRUE(stops[0].stop().moves());
}

// Who has passed a test is not journaled.
TEST_F(GrowTest, ACoordinatorThatDiesInBetweenTestsAgainBeforeTheCheckpoint) {
  PassSelfTest(cluster_, 1, cluster_.Sent(1, Kind::kSelfTest)[0].self_test().id());
  cluster_.Restart();
  cluster_.Register(0, 1, 2, "run");
  cluster_.Register(1, 2, 2, "run");
  cluster_.Heartbeat(1);
  cluster_.Progress(0, 0, 5);
  const auto tests = cluster_.Sent(1, Kind::kSelfTest);
  ASSERT_EQ(tests.size(), 1u);
  PassSelfTest(cluster_, 1, tests[0].self_test().id());
  EXPECT_THAT(cluster_.Sent(0, Kind::kStop), testing::IsEmpty()) << "it has been asked to move";
  Move(cluster_, {{0, {0, 1}}}, 10);
  EXPECT_EQ(cluster_.Status().generation(), 3u);
  EXPECT_EQ(cluster_.TheRun().plan.layout().data(), 4) << "the move was not in vain";
}

TEST(DrainTest, ARunMovesOntoASpareAtACheckpointThatIsAskedFor) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10", "spares = 1");
  cluster.Register(2, 1, 2, "run");
  cluster.Progress(0, 0, 3);
  Drain(cluster, "node-1");
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  ASSERT_EQ(cluster.Sent(0, Kind::kStop).size(), 1u);
  EXPECT_FALSE(cluster.Sent(0, Kind::kStop)[0].stop().at_checkpoint());
  EXPECT_EQ(NodeOf(cluster, "node-1").state(), v1::NODE_STATE_DRAINING);
  Move(cluster, {{0, {0, 1}}, {1, {2, 3}}}, 5);
  EXPECT_EQ(cluster.Status().generation(), 2u);
  EXPECT_EQ(NodesOf(cluster), (std::set<std::uint64_t>{1, 3}));
  EXPECT_EQ(NodeOf(cluster, "node-1").state(), v1::NODE_STATE_DRAINED);
  EXPECT_EQ(cluster.Status().lost_steps(), 0);
  EXPECT_TRUE(cluster.TheRun().plan.live());
}

TEST(DrainTest, WithoutASpareTheRunShrinksAtOnce) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Progress(0, 0, 3);
  Drain(cluster, "node-1");
  Move(cluster, {{0, {0, 1}}, {1, {2, 3}}}, 5);
  EXPECT_EQ(cluster.Status().generation(), 2u) << "nobody expects a drained node back";
  EXPECT_EQ(NodesOf(cluster), std::set<std::uint64_t>{1});
}

TEST(DrainTest, ARepeatAfterTheUndrainDrainsNothing) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  Drain(cluster, "node-1", "once");
  Drain(cluster, "node-1", "twice");
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeDrained).size(), 1u);
  Undrain(cluster, "node-1");
  Drain(cluster, "node-1", "once");
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeDrained).size(), 1u);
  Drain(cluster, "nowhere");
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kNotFound);
}

TEST(QuarantineTest, AfterThreeFailuresANodeGetsNoWorkAndTheRunGoesOn) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10", "spares = 1");
  cluster.Register(2, 1, 2, "run");
  cluster.Checkpoint(10);
  for (std::uint64_t generation = 1; generation <= 3; ++generation) {
    ASSERT_EQ(cluster.Status().generation(), generation);
    cluster.Progress(0, 0, 13);
    ASSERT_TRUE(NodesOf(cluster).contains(2));
    cluster.Fail(1, KilledOn(cluster, 3));
    cluster.Gone(0, generation);
    cluster.Gone(1, generation);
    if (generation < 3) {
      for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
    }
  }
  EXPECT_EQ(NodeOf(cluster, "node-1").state(), v1::NODE_STATE_QUARANTINED);
  EXPECT_EQ(cluster.Status().generation(), 4u) << "no crash loop: the node is to blame";
  EXPECT_EQ(NodesOf(cluster), (std::set<std::uint64_t>{1, 3}));
}

TEST(QuarantineTest, ANodeThatTheRunCannotDoWithoutIsKept) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10", "min_nodes = 2");
  for (std::uint64_t generation = 1; generation < 3; ++generation) {
    cluster.Progress(0, 0, 13);
    cluster.Fail(1, KilledOn(cluster, 3));
    cluster.Gone(0, generation);
    cluster.Gone(1, generation);
  }
  cluster.Fail(1, KilledOn(cluster, 3));
  EXPECT_TRUE(cluster.Facts(v1::Fact::kNodeDrained).empty());
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED) << "a crash loop";
}

// Two ranks on node-0, one of which keeps dying; node-1 is a spare.
class LastCopyTest : public testing::Test {
 protected:
  void SetUp() override {
    cluster_.Submit(
        SubmissionOf("submit", RunFileText(1, 2, 100, "interval_steps = 10", "spares = 1")));
    cluster_.Register(0, 1, 2, "run");
    cluster_.Register(1, 1, 2, "run");
    Begin(0);
  }
  void Begin(int node) {
    for (const int rank : {0, 1}) cluster_.Ready(node, rank);
  }
  // Rank 1 dies at `step`; rank 0 holds it.
  void Fail(std::int64_t step) {
    const std::uint64_t generation = cluster_.Status().generation();
    cluster_.Progress(0, 0, step);
    cluster_.Fail(0, KilledOn(cluster_, 1));
    cluster_.Gone(0, generation, {{0, step}});
  }
  void FailThrice() {
    for (const std::int64_t step : {4, 5, 6}) {
      Fail(step);
      if (step < 6) Begin(0);
    }
  }
  void ExpectGoesOnOnNode0(std::int64_t step) {
    EXPECT_EQ(cluster_.TheRun().state, v1::RUN_STATE_STARTING);
    EXPECT_EQ(NodesOf(cluster_), std::set<std::uint64_t>{1});
    EXPECT_TRUE(cluster_.TheRun().plan.live());
    EXPECT_EQ(cluster_.TheRun().plan.start_step(), step);
    EXPECT_EQ(NodeOf(cluster_, "node-0").state(), v1::NODE_STATE_TRAINING);
  }
  // The run has trained again, and the spare has passed its test.
  void AskToMoveAt(std::int64_t step) {
    cluster_.Progress(0, 0, step);
    const auto tests = cluster_.Sent(1, Kind::kSelfTest);
    ASSERT_EQ(tests.size(), 1u);
    PassSelfTest(cluster_, 1, tests[0].self_test().id());
    const auto stops = cluster_.Sent(0, Kind::kStop);
    ASSERT_EQ(stops.size(), 1u);
    EXPECT_TRUE(stops[0].stop().moves());
    EXPECT_FALSE(stops[0].stop().at_checkpoint());
    EXPECT_THAT(cluster_.Status().reason(), HasSubstr("node-0 has failed 3 times within an hour"));
  }
  Cluster cluster_;
};

TEST_F(LastCopyTest, ANodeThatHoldsItIsQuarantinedWhenTheRunHasMovedOff) {
  FailThrice();
  ExpectGoesOnOnNode0(6);
  Begin(0);
  AskToMoveAt(7);
  Move(cluster_, {{0, {0, 1}}}, 8);
  EXPECT_EQ(NodeOf(cluster_, "node-0").state(), v1::NODE_STATE_QUARANTINED);
  EXPECT_EQ(NodeOf(cluster_, "node-0").reason(), "3 failures within an hour");
  EXPECT_EQ(NodesOf(cluster_), std::set<std::uint64_t>{2});
  EXPECT_EQ(cluster_.TheRun().plan.start_step(), 8);
  EXPECT_EQ(cluster_.Status().lost_steps(), 0);
}

TEST_F(LastCopyTest, AFailureOnTheWayLosesNothingEither) {
  FailThrice();
  Begin(0);
  AskToMoveAt(7);
  Fail(8);
  ExpectGoesOnOnNode0(8);
  Begin(0);
  cluster_.Progress(0, 0, 9);
  EXPECT_EQ(cluster_.Sent(0, Kind::kStop).size(), 1u) << "the spare's test counts";
  EXPECT_EQ(cluster_.Status().lost_steps(), 0);
}

TEST_F(LastCopyTest, ACoordinatorThatDiesInBetweenDecidesAlike) {
  for (const std::int64_t step : {4, 5}) {
    Fail(step);
    Begin(0);
  }
  cluster_.Progress(0, 0, 6);
  cluster_.Fail(0, KilledOn(cluster_, 1));
  cluster_.Restart();
  EXPECT_TRUE(cluster_.Facts(v1::Fact::kNodeDrained).empty());
  for (const int node : {0, 1}) cluster_.Register(node, 1, 2, "run");
  cluster_.Heartbeat(1);
  cluster_.Gone(0, 3, {{0, 6}});
  cluster_.Heartbeat(0);
  ExpectGoesOnOnNode0(6);
  Begin(0);
  cluster_.Restart();
  for (const int node : {0, 1}) cluster_.Register(node, 1, 2, "run");
  cluster_.Heartbeat(1);
  AskToMoveAt(7);
}

TEST_F(LastCopyTest, ACrashLoopLetsGoOfIt) {
  for (const int rank : {0, 1}) cluster_.Part(0, cluster_.PartOf(rank, 10, 2));
  cluster_.ManifestDone(10);
  for (const int failures : {1, 2, 3}) {  // the first of these has kept something
    Fail(13);
    ASSERT_TRUE(cluster_.Facts(v1::Fact::kNodeDrained).empty()) << failures;
    ExpectGoesOnOnNode0(13);
  }
  Fail(13);
  EXPECT_EQ(NodeOf(cluster_, "node-0").state(), v1::NODE_STATE_QUARANTINED);
  EXPECT_EQ(cluster_.TheRun().state, v1::RUN_STATE_STARTING) << "the node is to blame";
  EXPECT_EQ(NodesOf(cluster_), std::set<std::uint64_t>{2});
  EXPECT_EQ(cluster_.TheRun().plan.start_step(), 10);
}

TEST_F(LastCopyTest, WhereTheCheckpointFailsTheRunStaysUntilTheNextThatIsDue) {
  FailThrice();
  Begin(0);
  AskToMoveAt(7);
  for (const int rank : {0, 1}) {
    cluster_.Part(0, cluster_.PartOf(rank, 8, 2));
    cluster_.Finish(0, rank, 8, /*stopped=*/true);
  }
  cluster_.ManifestDone(8, absl::ResourceExhaustedError("no space left on device"));
  cluster_.Progress(0, 0, 8);
  cluster_.Gone(0, 4, {{0, 8}, {1, 8}});
  ExpectGoesOnOnNode0(8);
  Begin(0);
  cluster_.Progress(0, 0, 9);
  const auto stops = cluster_.Sent(0, Kind::kStop);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_TRUE(stops[0].stop().at_checkpoint());
  Move(cluster_, {{0, {0, 1}}}, 10);
  EXPECT_EQ(NodeOf(cluster_, "node-0").state(), v1::NODE_STATE_QUARANTINED);
  EXPECT_EQ(NodesOf(cluster_), std::set<std::uint64_t>{2});
  EXPECT_EQ(cluster_.Status().lost_steps(), 0);
}

// Parts that a failure left in flight are no sign of a bad disk.
TEST(OverdueTest, AFailureAmidTheMovesCheckpointDoesNotEndTheMove) {
  Cluster cluster;
  cluster.Submit(
      SubmissionOf("submit", RunFileText(1, 2, 100, "interval_steps = 0", "spares = 1")));
  cluster.Register(0, 1, 2, "run");
  cluster.Register(1, 1, 2, "run");
  const auto begin = [&] {
    for (const int rank : {0, 1}) cluster.Ready(0, rank);
  };
  const auto fail = [&](std::int64_t step) {
    const std::uint64_t generation = cluster.Status().generation();
    cluster.Progress(0, 0, step);
    cluster.Fail(0, KilledOn(cluster, 1));
    cluster.Gone(0, generation, {{0, step}});
  };
  begin();
  for (const std::int64_t step : {4, 5, 6}) {
    fail(step);
    begin();
  }
  cluster.Progress(0, 0, 7);
  PassSelfTest(cluster, 1, cluster.Sent(1, Kind::kSelfTest).at(0).self_test().id());
  ASSERT_EQ(cluster.Sent(0, Kind::kStop).size(), 1u);
  cluster.Part(0, cluster.PartOf(0, 8, 2));
  fail(8);
  ASSERT_TRUE(cluster.Facts(v1::Fact::kNodeDrained).empty()) << "it holds the last copy";
  begin();
  cluster.Progress(0, 0, 9);
  EXPECT_EQ(cluster.Sent(0, Kind::kStop).size(), 1u) << "it is asked again";
}

TEST(LayoutOnTest, FewerSlotsMeanFewerCopiesThenTheLeastMemory) {
  const RunFile file = *ParseRunFile(
      "[run]\nname = \"unit\"\n"
      "[model]\nvocab_size = 256\nhidden_size = 32\nnum_hidden_layers = 4\n"
      "num_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 16\nintermediate_size = 64\n"
      "n_routed_experts = 4\nnum_experts_per_tok = 2\nmoe_intermediate_size = 64\n"
      "[data]\ntrain = \"/corpus\"\n"
      "[train]\nsequence_length = 16\nmicro_batch_size = 1\nlearning_rate = 1e-3\n"
      "global_batch_size = 48\nsteps = 10\n[layout]\npipeline = 2\nexpert = 2\n"
      "[launch]\nnodes = 4\nslots_per_node = 4\n",
      "run.toml", "/", {});
  EXPECT_EQ(LayoutOn(file, 16)->data(), 8);
  for (const int slots : {12, 13, 15}) {
    const v1::Layout layout = *LayoutOn(file, slots);
    EXPECT_EQ(layout.data(), 6) << slots;
    EXPECT_EQ(layout.pipeline(), 2);
    EXPECT_EQ(layout.expert(), 2);
  }
  EXPECT_EQ(LayoutOn(file, 4)->data(), 2);
  const v1::Layout three = *LayoutOn(file, 3);
  EXPECT_LE(three.pipeline() * three.data(), 3);
  EXPECT_EQ(three.pipeline(), 3) << "a third of the layers each";
  EXPECT_EQ(LayoutOn(file, 1)->pipeline(), 1);
  EXPECT_FALSE(LayoutOn(file, 0).ok());
}

}  // namespace
}  // namespace paceline::core
