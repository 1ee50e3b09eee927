// What a generation begins from: held by workers, in snapshots, by buddies, or on disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/timeouts.h"
#include "coordinator/core/planner.h"
#include "coordinator/core/restore.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using Kind = v1::CoordinatorMessage::BodyCase;

std::string TwoStages(int nodes, int slots, const std::string& checkpoint = "interval_steps = 10",
                      const std::string& launch = "") {
  std::string text = RunFileText(nodes, slots, 100, checkpoint, launch);
  text.replace(text.find("num_hidden_layers = 1"), 21, "num_hidden_layers = 2");
  return text + "[layout]\npipeline = 2\n";
}

bool Everybody(NodeId) { return true; }
bool Nobody(NodeId) { return false; }

// A run of two stages, rank = copy * 2 + stage, that has ended its first generation: rank r on node
// r / `slots` + 1.
struct Stages {
  explicit Stages(int copies, int slots = 1) {
    run.file = *ParseRunFile(TwoStages(2, copies), "run.toml", "/", {});
    v1::Window window;
    window.set_end_step(50);
    run.windows.push_back(window);
    *run.plan.mutable_layout() = *LayoutFor(run.file);
    for (int rank = 0; rank < 2 * copies; ++rank) {
      v1::RankPlacement& placement = *run.plan.add_placements();
      placement.set_rank(rank);
      placement.set_node_id(static_cast<std::uint64_t>(rank / slots + 1));
      placement.set_slot(rank % slots);
    }
    placements = {run.plan.placements().begin(), run.plan.placements().end()};
  }
  RestorePoint With(const Held& held, bool (*serves)(NodeId) = Everybody) const {
    return RestoreFor(run, held, run.plan.layout(), placements, serves);
  }

  paceline::core::Run run;
  std::vector<v1::RankPlacement> placements;
};

Held Live(const std::map<std::int32_t, std::int64_t>& live) { return {.live = live}; }

TEST(RestoreTest, EveryStageMustBeCoveredAtOneStep) {
  Stages two(/*copies=*/2);
  EXPECT_EQ(two.With(Live({{0, 7}, {1, 7}, {3, 7}})).step, 7);
  EXPECT_EQ(two.With(Live({{0, 7}, {1, 7}, {3, 7}})).transfers[0].from(), 0);
  EXPECT_FALSE(two.With(Live({{0, 7}, {2, 7}})).live) << "nobody has the second stage";
  EXPECT_EQ(two.With(Live({{0, 7}, {2, 7}})).missing, 1);
  EXPECT_FALSE(two.With(Live({{0, 8}, {1, 7}})).live);
  EXPECT_EQ(two.With(Live({{0, 8}, {1, 7}})).missing, std::nullopt) << "each is somewhere";
  EXPECT_EQ(two.With(Live({{0, 8}, {1, 7}, {2, 7}, {3, 8}})).step, 8);
  EXPECT_FALSE(two.With(Live({{0, 60}, {1, 60}})).live) << "such a step was never granted";
  two.run.plan.mutable_layout()->set_shard_optimizer(true);
  EXPECT_FALSE(two.With(Live({{0, 7}, {1, 7}, {3, 7}})).live) << "rank 2's moments are lost";
  EXPECT_EQ(two.With(Live({{0, 7}, {1, 7}, {2, 7}, {3, 7}})).step, 7);
}

TEST(RestoreTest, TheLastCopyIsWhatNoOtherNodesWorkersHold) {
  State state;
  for (const std::uint64_t id : {1, 2}) {
    state.nodes[NodeId{id}] = {.id = NodeId{id}, .alive = true, .joined_index = id};
  }
  Stages two(/*copies=*/2, /*slots=*/2);
  two.run.plan_index = 5;
  v1::RankFailed& failure = two.run.failure;
  failure.mutable_key();
  failure.set_rank(1);
  EXPECT_FALSE(HoldsLastCopy(state, two.run, NodeId{1})) << "node 2 has both stages";
  failure.set_rank(3);
  EXPECT_TRUE(HoldsLastCopy(state, two.run, NodeId{1})) << "the second stage";
  EXPECT_FALSE(HoldsLastCopy(state, two.run, NodeId{2}));
  failure.set_rank(1);
  state.nodes[NodeId{2}].drained = true;
  EXPECT_FALSE(HoldsLastCopy(state, two.run, NodeId{1})) << "nobody holds the second stage";
  failure.Clear();
  EXPECT_FALSE(HoldsLastCopy(state, two.run, NodeId{1})) << "a checkpoint holds all of it";
  two.run.last_step = 7;
  EXPECT_TRUE(HoldsLastCopy(state, two.run, NodeId{1})) << "no checkpoint does";
  state.nodes[NodeId{1}].joined_index = 6;
  EXPECT_FALSE(HoldsLastCopy(state, two.run, NodeId{1})) << "its workers are gone";
}

// The second stage's worker is dead, and what the other has in memory is of a later step than its
// snapshots.
TEST(RestoreTest, SnapshotsOfOneStepCoverWhatNobodyHoldsLive) {
  const Stages one(/*copies=*/1);
  const RestorePoint restore =
      one.With({.live = {{0, 27}},
                .snapshots = {{NodeId{1}, {{0, {10, 20}}}}, {NodeId{2}, {{1, {10, 20}}}}}});
  EXPECT_TRUE(restore.live);
  EXPECT_EQ(restore.step, 20);
  EXPECT_THAT(restore.transfers, IsEmpty());
  ASSERT_EQ(restore.sources.size(), 2u);
  EXPECT_EQ(restore.sources[1].to(), 1);
  EXPECT_EQ(restore.sources[1].from(), 1);
  EXPECT_EQ(restore.sources[1].node_id(), 2u);
  EXPECT_EQ(
      one.With({.snapshots = {{NodeId{1}, {{0, {20, 30}}}}, {NodeId{2}, {{1, {10, 20}}}}}}).step,
      20);
  EXPECT_FALSE(
      one.With({.snapshots = {{NodeId{1}, {{0, {20, 30}}}}, {NodeId{2}, {{1, {10}}}}}}).live);
}

// Node 2 is gone; node 3 has its rank now, and node 1 the copy.
TEST(RestoreTest, ABuddysCopyIsFetched) {
  Stages one(/*copies=*/1);
  one.placements[1].set_node_id(3);
  const Held held = {.snapshots = {{NodeId{1}, {{0, {10, 20}}, {1, {10}}}}}};
  const RestorePoint restore = one.With(held);
  EXPECT_TRUE(restore.live);
  EXPECT_EQ(restore.step, 10) << "the copy of step 20 had not come over";
  ASSERT_EQ(restore.sources.size(), 2u);
  EXPECT_EQ(restore.sources[1].to(), 1);
  EXPECT_EQ(restore.sources[1].node_id(), 1u);
  EXPECT_FALSE(one.With(held, Nobody).live) << "node 1 serves no snapshots";
}

// Node 1 is gone, and both stages fit node 2: one of them lies there as a copy.
TEST(RestoreTest, ACopyOnTheRanksOwnNodeNeedsNoServer) {
  Stages one(/*copies=*/1);
  for (v1::RankPlacement& placement : one.placements) placement.set_node_id(2);
  one.placements[1].set_slot(1);
  const RestorePoint restore =
      one.With({.snapshots = {{NodeId{2}, {{0, {10}}, {1, {10}}}}}}, Nobody);
  EXPECT_TRUE(restore.live);
  EXPECT_EQ(restore.sources.size(), 2u);
}

// Whoever is of the same stage will do, wherever and as whichever rank it was taken.
TEST(RestoreTest, ASnapshotCountsForEveryRankOfItsState) {
  Stages two(/*copies=*/2);  // on nodes 1 to 4
  for (std::size_t rank = 0; rank < 4; ++rank) two.placements[rank].set_node_id(rank + 5);
  const RestorePoint restore =
      two.With({.snapshots = {{NodeId{3}, {{2, {10}}}}, {NodeId{5}, {{3, {10}}}}}});
  EXPECT_TRUE(restore.live);
  ASSERT_EQ(restore.sources.size(), 2u) << "one of each stage comes, and is passed on";
  EXPECT_EQ(restore.sources[0].to(), 0);
  EXPECT_EQ(restore.sources[0].from(), 2);
  EXPECT_EQ(restore.sources[1].to(), 1);
  EXPECT_EQ(restore.sources[1].from(), 3);
  ASSERT_EQ(restore.transfers.size(), 2u);
  EXPECT_EQ(restore.transfers[0].from(), 0);
  EXPECT_EQ(restore.transfers[0].to(), 2);
}

TEST(BuddiesTest, TheNextNodeKeepsCopiesOfStatesThatNoOtherNodeHas) {
  const std::vector<Buddy> alone = BuddiesOf(Stages(/*copies=*/1).run.plan);
  ASSERT_EQ(alone.size(), 2u);
  EXPECT_EQ(alone[0].rank, 0);
  EXPECT_EQ(alone[0].node, NodeId{1});
  EXPECT_EQ(alone[0].buddy, NodeId{2});
  EXPECT_EQ(alone[1].buddy, NodeId{1}) << "a ring";
  EXPECT_THAT(BuddiesOf(Stages(/*copies=*/2).run.plan), IsEmpty())
      << "a data-parallel copy lies on another node";
  EXPECT_EQ(BuddiesOf(Stages(/*copies=*/2, /*slots=*/3).run.plan).size(), 1u)
      << "rank 3 repeats stage 1 on node 2; stage 0 lies on node 1 alone";
  EXPECT_THAT(BuddiesOf(Stages(/*copies=*/1, /*slots=*/2).run.plan), IsEmpty()) << "one node";
}

// --- the whole core ---

class BuddyClusterTest : public testing::Test {
 protected:
  // Two stages on nodes 0 and 1; node 2 is a spare.
  void Begin(const std::string& checkpoint = "interval_steps = 10") {
    cluster_.Submit(SubmissionOf("submit", TwoStages(2, 1, checkpoint, "spares = 1\n")));
    for (const int node : {0, 1, 2}) cluster_.Register(node, 1, 1, "run");
    for (const int rank : {0, 1}) cluster_.Ready(rank, rank);
    cluster_.Progress(0, 0, 25);
  }
  v1::GenerationGone LeftBehind(std::uint64_t generation,
                                const std::map<int, std::vector<std::int64_t>>& snapshots) {
    v1::GenerationGone gone;
    *gone.mutable_key() = cluster_.Key(generation);
    for (const auto& [rank, steps] : snapshots) {
      for (const std::int64_t step : steps) {
        v1::HeldState& held = *gone.add_held();
        held.set_rank(rank);
        held.set_step(step);
        held.set_snapshot(true);
      }
    }
    return gone;
  }
  void Gone(int node, std::uint64_t generation,
            const std::map<int, std::vector<std::int64_t>>& snapshots) {
    v1::AgentMessage message;
    *message.mutable_gone() = LeftBehind(generation, snapshots);
    cluster_.Say(node, message);
  }
  // Its machine is gone: it comes back with nothing.
  void Lose(int node) {
    ++incarnation_;
    cluster_.Register(node, incarnation_, 1, "run");
  }
  // To node-2 and node-3, which read from it what they begin with.
  void GoOnWithoutNode0() {
    Begin();
    v1::DrainNodeRequest drain;
    drain.set_request_id("drain");
    drain.set_node("node-0");
    cluster_.Decide(DrainNodeCalled{CallId{900}, drain});
    cluster_.Register(3, 1, 1, "run");
    Lose(1);
    Gone(0, 1, {{0, {10, 20}}, {1, {10, 20}}});
    EXPECT_THAT(cluster_.Sent(0, Kind::kEnd), IsEmpty()) << "it is read from";
  }
  void AllReady() {
    for (const v1::RankPlacement& placement : cluster_.TheRun().plan.placements()) {
      cluster_.Ready(static_cast<int>(placement.node_id()) - 1, placement.rank());
    }
  }
  v1::StartGeneration Started(int node) {
    const auto sent = cluster_.Sent(node, Kind::kStart);
    EXPECT_EQ(sent.size(), 1u);
    return sent.empty() ? v1::StartGeneration() : sent[0].start();
  }
  v1::RankFailed DidNotCome(int rank) {
    v1::RankFailed failed;
    *failed.mutable_key() = cluster_.Key();
    failed.set_rank(rank);
    failed.set_status_code(static_cast<int>(absl::StatusCode::kUnknown));
    failed.set_error("the state did not come");
    failed.set_exit_code(-1);
    return failed;
  }

  Cluster cluster_;
  std::uint64_t incarnation_ = 1;
};

TEST_F(BuddyClusterTest, NodesAreToldWhoseSnapshotsTheyCopy) {
  cluster_.Submit(SubmissionOf("submit", TwoStages(2, 1)));
  cluster_.Register(0, 1, 1, "run");
  cluster_.Register(1, 1, 1, "run");
  const v1::StartGeneration start = Started(0);
  ASSERT_EQ(start.copies_size(), 1);
  EXPECT_EQ(start.copies(0).rank(), 1);
  EXPECT_EQ(start.copies(0).address(), "127.0.0.1:7001");
  EXPECT_EQ(start.copies(0).node(), "node-1");
  EXPECT_EQ(Started(1).copies(0).rank(), 0);
}

TEST_F(BuddyClusterTest, WithoutSnapshotsNothingIsCopied) {
  cluster_.Submit(
      SubmissionOf("submit", TwoStages(2, 1) + "[failure]\nsnapshot_interval_steps = 0\n"));
  cluster_.Register(0, 1, 1, "run");
  cluster_.Register(1, 1, 1, "run");
  EXPECT_EQ(Started(0).copies_size(), 0);
}

TEST_F(BuddyClusterTest, ASpareBeginsFromTheLostNodesBuddy) {
  Begin();
  Lose(1);
  Gone(0, 1, {{0, {10, 20}}, {1, {10, 20}}});
  const v1::StartGeneration spare = Started(2);
  EXPECT_TRUE(spare.live());
  EXPECT_EQ(spare.start_step(), 20);
  ASSERT_EQ(spare.sources_size(), 1);
  EXPECT_EQ(spare.sources(0).to(), 1);
  EXPECT_EQ(spare.sources(0).node(), "node-0");
  EXPECT_EQ(spare.sources(0).address(), "127.0.0.1:7000");
  EXPECT_EQ(Started(0).sources_size(), 1) << "its own";
  EXPECT_THAT(cluster_.TheRun().plan.reason(), Not(HasSubstr("holds")));
  // The coordinator's next life tells it again.
  cluster_.Restart();
  cluster_.Register(2, 1, 1, "run");
  EXPECT_EQ(Started(2).sources(0).address(), "127.0.0.1:7000");
}

TEST_F(BuddyClusterTest, ANodeThatIsLostWithItsBuddyCostsTheWayFromTheCheckpoint) {
  Begin();
  for (const int rank : {0, 1}) cluster_.Part(rank, cluster_.PartOf(rank, 10, 2));
  cluster_.ManifestDone(10);
  Lose(1);
  Lose(0);
  const v1::GenerationStarted& plan = cluster_.TheRun().plan;
  EXPECT_EQ(plan.key().generation(), 2u);
  EXPECT_FALSE(plan.live());
  EXPECT_EQ(plan.start_step(), 10);
  EXPECT_THAT(plan.reason(), HasSubstr("neither node-0 nor its buddy node-1 holds the state of "
                                       "rank 0 any more: from the checkpoint of step 10"));
}

TEST_F(BuddyClusterTest, ASnapshotThatDidNotComeIsNotPlannedWithAgain) {
  Begin();
  Lose(1);
  Gone(0, 1, {{0, {10, 20}}, {1, {10, 20}}});
  EXPECT_TRUE(Started(2).live());
  cluster_.Fail(2, DidNotCome(1));
  Gone(0, 2, {{0, {10, 20}}, {1, {10, 20}}});
  Gone(2, 2, {});
  EXPECT_EQ(cluster_.TheRun().plan.key().generation(), 3u);
  EXPECT_FALSE(cluster_.TheRun().plan.live());
}

// A run of one copy on two of three nodes goes on with one: the buddy is left out, and still asked.
TEST_F(BuddyClusterTest, WhoIsReadFromForgetsWhenAllHaveTakenUpTheirState) {
  GoOnWithoutNode0();
  const v1::GenerationStarted& plan = cluster_.TheRun().plan;
  ASSERT_TRUE(plan.live());
  ASSERT_EQ(plan.sources_size(), 2);
  for (const v1::RankPlacement& placement : plan.placements()) {
    EXPECT_NE(cluster_.core().state().nodes.at(NodeId{placement.node_id()}).info.name(), "node-0");
  }
  AllReady();
  ASSERT_EQ(cluster_.Sent(0, Kind::kEnd).size(), 1u);
  EXPECT_TRUE(cluster_.Sent(0, Kind::kEnd)[0].end().forget());
}

TEST_F(BuddyClusterTest, NobodyWaitsForStateFromANodeThatIsLost) {
  GoOnWithoutNode0();
  ASSERT_EQ(cluster_.TheRun().plan.key().generation(), 2u);
  cluster_.Run(TimeoutsFor(cluster_.TheRun().file.failure).lease + seconds(1), {2, 3});
  ASSERT_EQ(cluster_.Facts(v1::Fact::kGenerationEnded).size(), 2u);
  const v1::RankFailed failure =
      cluster_.Facts(v1::Fact::kGenerationEnded)[1].generation_ended().failure();
  EXPECT_EQ(failure.cause(), v1::FAILURE_CAUSE_NODE_LOST);
  EXPECT_THAT(failure.error(), HasSubstr("from a node that is lost: node node-0 was silent"));
  for (const int node : {2, 3}) Gone(node, 2, {});
  EXPECT_EQ(cluster_.TheRun().plan.key().generation(), 3u);
  EXPECT_FALSE(cluster_.TheRun().plan.live());
}

TEST_F(BuddyClusterTest, WhoWasOutOfHearingIsToldToForgetWhenItComesBack) {
  GoOnWithoutNode0();
  cluster_.Close(0);
  AllReady();
  EXPECT_THAT(cluster_.Sent(0, Kind::kEnd), IsEmpty());
  cluster_.Register(0, 1, 1, "run");
  Gone(0, 1, {{0, {10, 20}}, {1, {10, 20}}});  // nobody has shown that it came through
  ASSERT_EQ(cluster_.Sent(0, Kind::kEnd).size(), 1u);
  EXPECT_TRUE(cluster_.Sent(0, Kind::kEnd)[0].end().forget());
  EXPECT_EQ(cluster_.Sent(0, Kind::kEnd)[0].end().key().generation(), 1u);
  Gone(0, 1, {});
  EXPECT_THAT(cluster_.Sent(0, Kind::kEnd), IsEmpty()) << "it has been told";
  cluster_.Register(0, 2, 1, "run", {LeftBehind(1, {{0, {10, 20}}})});
  ASSERT_EQ(cluster_.Sent(0, Kind::kEnd).size(), 1u) << "another process, that found snapshots";
  EXPECT_TRUE(cluster_.Sent(0, Kind::kEnd)[0].end().forget());
}

TEST_F(BuddyClusterTest, ACoordinatorThatDiesInBetweenTellsToForgetAllTheSame) {
  GoOnWithoutNode0();
  cluster_.Restart();
  cluster_.Register(0, 1, 1, "run");
  Gone(0, 1, {{0, {10, 20}}, {1, {10, 20}}});
  EXPECT_THAT(cluster_.Sent(0, Kind::kEnd), IsEmpty()) << "it is read from";
  for (const int node : {2, 3}) cluster_.Register(node, 1, 1, "run");
  AllReady();
  ASSERT_EQ(cluster_.Sent(0, Kind::kEnd).size(), 1u);
  EXPECT_TRUE(cluster_.Sent(0, Kind::kEnd)[0].end().forget());
}

TEST_F(BuddyClusterTest, NodesThatServeOthersTooForgetAnEndedRun) {
  cluster_.Submit(SubmissionOf("submit", TwoStages(2, 1)));
  cluster_.Register(0, 1, 1);
  cluster_.Register(1, 1, 1);
  for (const int rank : {0, 1}) cluster_.Ready(rank, rank);
  for (const int rank : {0, 1}) cluster_.Part(rank, cluster_.PartOf(rank, 10, 2));
  cluster_.ManifestDone(10);
  v1::RankFailed failed = DidNotCome(1);
  failed.set_status_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
  cluster_.Fail(1, failed);
  EXPECT_EQ(cluster_.Status().state(), v1::RUN_STATE_FAILED);
  const auto ends = cluster_.Sent(0, Kind::kEnd);
  ASSERT_FALSE(ends.empty());
  EXPECT_TRUE(ends.back().end().forget());
  // Resumed, it counts on nothing that they said they held before they heard so.
  v1::SubmitRunRequest resume = SubmissionOf("resume", TwoStages(2, 1));
  resume.set_resume(true);
  cluster_.Submit(resume);
  for (const int node : {0, 1}) cluster_.Gone(node, 1, {{node, 10}});
  EXPECT_EQ(Started(1).start_step(), 10);
  EXPECT_FALSE(Started(1).live());
}

// --- nodes that are out of hearing ---

// Two stages on a node each, without snapshots: what their workers hold is nowhere else.
class OutOfHearingTest : public testing::Test {
 protected:
  OutOfHearingTest() {
    cluster_.Submit(SubmissionOf("submit", TwoStages(2, 1, "interval_steps = 0", "min_nodes = 1") +
                                               "[failure]\nsnapshot_interval_steps = 0\n"));
    for (const int node : {0, 1}) cluster_.Register(node, 1, 1, "run");
    limits_ = TimeoutsFor(cluster_.TheRun().file.failure);
    Begin();
  }
  void Begin() {
    for (const v1::RankPlacement& placement : cluster_.TheRun().plan.placements()) {
      cluster_.Ready(static_cast<int>(placement.node_id()) - 1, placement.rank());
    }
    cluster_.Progress(0, 0, ++step_);
  }
  // The same process, with what its worker held.
  void ComeBack(int node, std::uint64_t generation) {
    v1::GenerationGone gone;
    *gone.mutable_key() = cluster_.Key(generation);
    v1::HeldState& held = *gone.add_held();
    held.set_rank(node);
    held.set_step(step_);
    cluster_.Register(node, 1, 1, "run", {gone});
    cluster_.Heartbeat(node);
  }
  void ExpectAllInPlace() {
    const v1::GenerationStarted& plan = cluster_.TheRun().plan;
    EXPECT_TRUE(plan.live()) << plan.reason();
    EXPECT_EQ(plan.start_step(), step_);
    ASSERT_EQ(plan.placements_size(), 2);
    for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(plan.placements(rank).node_id(), rank + 1);
  }

  Cluster cluster_;
  Timeouts limits_ = {};
  std::int64_t step_ = 20;
};

TEST_F(OutOfHearingTest, BothTakeTheirPlacesAgainAndNeitherIsToBlame) {
  // By its failures alone node-0 would come last.
  v1::RankFailed failed;
  *failed.mutable_key() = cluster_.Key();
  failed.set_rank(0);
  failed.set_signal(9);
  cluster_.Fail(0, failed);
  cluster_.Gone(0, 1);
  cluster_.Gone(1, 1);
  Begin();
  cluster_.Run(limits_.lease + seconds(1), {});
  ASSERT_EQ(cluster_.Status().state(), v1::RUN_STATE_WAITING);
  for (const v1::Fact& fact : cluster_.Facts(v1::Fact::kNodeLeft)) {
    EXPECT_FALSE(fact.node_left().failed());
  }
  for (const int node : {1, 0}) ComeBack(node, 2);
  EXPECT_EQ(cluster_.Status().generation(), 3u);
  ExpectAllInPlace();
}

TEST_F(OutOfHearingTest, WhoHoldsTheLastCopyIsQuarantinedWhenTheRunHasGoneOnWithoutIt) {
  for (std::uint64_t generation = 1; generation <= 3; ++generation) {
    cluster_.Run(limits_.lease + seconds(1), {0});
    cluster_.Gone(0, generation, {{0, step_}});
    EXPECT_EQ(cluster_.Facts(v1::Fact::kNodeLeft).size(), generation);
    EXPECT_TRUE(cluster_.Facts(v1::Fact::kNodeLeft).back().node_left().failed());
    EXPECT_TRUE(cluster_.Facts(v1::Fact::kNodeDrained).empty());
    ComeBack(1, generation);
    ExpectAllInPlace();
    Begin();
  }
  cluster_.Run(limits_.lease + seconds(1), {0});
  cluster_.Gone(0, 4, {{0, step_}});
  EXPECT_TRUE(cluster_.Facts(v1::Fact::kNodeDrained).empty());
  cluster_.Run(limits_.rejoin + seconds(1), {0});
  EXPECT_EQ(cluster_.TheRun().plan.placements_size(), 1);
  ASSERT_EQ(cluster_.Facts(v1::Fact::kNodeDrained).size(), 1u);
  EXPECT_TRUE(cluster_.Facts(v1::Fact::kNodeDrained)[0].node_drained().quarantined());
  EXPECT_EQ(cluster_.Facts(v1::Fact::kNodeDrained)[0].node_drained().node_id(), 2u);
}

}  // namespace
}  // namespace paceline::core
