#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/protocol.h"
#include "coordinator/core/membership.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

// A node is requeued while its old process still heartbeats. The old process must not keep the
// new one's lease alive.
TEST(LeaseTableTest, RenewByReplacedIncarnationIsRejectedAndExtendsNothing) {
  const SteadyTime start{};
  LeaseTable leases;
  leases.Grant(NodeId{7}, Incarnation{2}, seconds(5), start);

  const absl::Status stale = leases.Renew(NodeId{7}, Incarnation{1}, start + seconds(4));

  EXPECT_EQ(stale.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(leases.ExpiredAt(start + milliseconds(4999)).empty());
  EXPECT_EQ(leases.ExpiredAt(start + seconds(5)), std::vector{NodeId{7}});
}

TEST(LeaseTableTest, RenewExtendsByTheNodesOwnTerm) {
  const SteadyTime start{};
  LeaseTable leases;
  leases.Grant(NodeId{1}, Incarnation{1}, seconds(5), start);
  leases.Grant(NodeId{2}, Incarnation{1}, seconds(2), start);
  EXPECT_EQ(leases.Next(), start + seconds(2));
  ASSERT_TRUE(leases.Renew(NodeId{2}, Incarnation{1}, start + seconds(1)).ok());
  EXPECT_EQ(leases.Next(), start + seconds(3));
}

TEST(LeaseTableTest, ExpiredNodesComeInNodeOrder) {
  const SteadyTime start{};
  LeaseTable leases;
  leases.Grant(NodeId{3}, Incarnation{1}, seconds(1), start);
  leases.Grant(NodeId{1}, Incarnation{1}, seconds(3), start);
  leases.Grant(NodeId{2}, Incarnation{1}, seconds(2), start);
  EXPECT_EQ(leases.ExpiredAt(start + seconds(9)), (std::vector{NodeId{1}, NodeId{2}, NodeId{3}}));
  leases.Remove(NodeId{2});
  EXPECT_EQ(leases.ExpiredAt(start + seconds(9)), (std::vector{NodeId{1}, NodeId{3}}));
}

TEST(LeaseTableTest, RenewOfAnUnknownNodeAsksItToRegister) {
  LeaseTable leases;
  EXPECT_EQ(leases.Renew(NodeId{1}, Incarnation{1}, {}).code(), absl::StatusCode::kNotFound);
}

v1::RegisterNode NodeNamed(const std::string& name, std::uint64_t incarnation) {
  v1::RegisterNode node;
  node.set_name(name);
  node.set_incarnation(incarnation);
  node.set_slots(2);
  node.set_protocol_version(1);
  return node;
}

TEST(AdmitTest, RefusalsNameTheField) {
  const State state;
  v1::RegisterNode node = NodeNamed("node/0", 1);
  EXPECT_THAT(std::string(Admit(state, node).status().message()), HasSubstr("name = \"node/0\""));
  node = NodeNamed("node-0", 1);
  node.set_slots(0);
  EXPECT_THAT(std::string(Admit(state, node).status().message()), HasSubstr("slots = 0"));
  node = NodeNamed("node-0", 1);
  node.set_host(std::string(5000, 'h'));
  EXPECT_THAT(std::string(Admit(state, node).status().message()), HasSubstr("host has 5000"));
}

TEST(AdmitTest, AnAgentOfANewerProtocolIsRefused) {
  v1::RegisterNode node = NodeNamed("node-0", 1);
  node.set_protocol_version(kNodeProtocolVersion + 1);
  EXPECT_EQ(Admit(State(), node).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(MembershipTest, ARepeatedRegistrationChangesNothing) {
  Cluster cluster;
  cluster.Register(0);
  const std::size_t facts = cluster.facts.size();
  cluster.Register(0);
  EXPECT_EQ(cluster.facts.size(), facts);
  EXPECT_EQ(cluster.Sent(0, v1::CoordinatorMessage::kRegistered).size(), 1u);
  EXPECT_EQ(cluster.Last<CloseSession>().size(), 1u);  // the session before
}

TEST(MembershipTest, ANewerIncarnationReplacesAndKeepsTheNodesId) {
  Cluster cluster;
  cluster.Register(0, 1);
  cluster.Register(0, 2);
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeLeft).size(), 1u);
  ASSERT_EQ(cluster.Facts(v1::Fact::kNodeJoined).size(), 2u);
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeJoined)[1].node_joined().node_id(), 1u);
  EXPECT_EQ(cluster.Last<CloseSession>()[0].reason.code(), absl::StatusCode::kFailedPrecondition);
}

TEST(MembershipTest, AnOlderIncarnationIsRefusedAlsoAfterTheNewerLeft) {
  Cluster cluster;
  cluster.Register(0, 2);
  cluster.Run(seconds(60), {});
  ASSERT_EQ(cluster.Facts(v1::Fact::kNodeLeft).size(), 1u);
  cluster.Register(0, 1);
  ASSERT_EQ(cluster.Last<CloseSession>().size(), 1u);
  EXPECT_EQ(cluster.Last<CloseSession>()[0].reason.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeJoined).size(), 1u);
}

TEST(MembershipTest, AClosedSessionAloneLosesNobody) {
  Cluster cluster;
  cluster.Register(0);
  cluster.Close(0);
  EXPECT_TRUE(cluster.Facts(v1::Fact::kNodeLeft).empty());
  cluster.Register(0);
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeJoined).size(), 1u);
}

TEST(MembershipTest, ASilentNodeIsLostAtItsLeasesEnd) {
  Cluster cluster;
  cluster.Register(0);
  cluster.Register(1);
  cluster.Run(seconds(10), {0});
  ASSERT_EQ(cluster.Facts(v1::Fact::kNodeLeft).size(), 1u);
  EXPECT_THAT(cluster.Facts(v1::Fact::kNodeLeft)[0].node_left().reason(),
              HasSubstr("node-1 was silent for its lease of 4 s"));
  EXPECT_EQ(cluster.core().Nodes().size(), 1u);
}

// The process was stopped, or its disk was: the heartbeats of that time lie unread.
TEST(MembershipTest, ACoordinatorThatStoodStillLosesNobodyForIt) {
  Cluster cluster;
  cluster.Register(0);
  cluster.Advance(seconds(60));
  cluster.Tick();
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeLeft).size(), 0u);
  cluster.Run(seconds(10), {});
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeLeft).size(), 1u);
}

// Nor do its other limits fire: what would have kept them lies unread.
TEST(MembershipTest, ACoordinatorThatStoodStillEndsNoGenerationForIt) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Register(0);
  cluster.Register(1);
  ASSERT_EQ(cluster.Status().generation(), 1u);
  cluster.Advance(seconds(300));  // past the limit to be ready
  cluster.Heartbeat(0);           // read before the clock is looked at
  cluster.Heartbeat(1);
  cluster.Tick();
  EXPECT_EQ(cluster.Facts(v1::Fact::kGenerationEnded).size(), 0u);
  cluster.Run(seconds(300), {0, 1});
  ASSERT_GE(cluster.Facts(v1::Fact::kGenerationEnded).size(), 1u);
  EXPECT_THAT(cluster.Facts(v1::Fact::kGenerationEnded)[0].generation_ended().reason(),
              HasSubstr("was not ready within"));
}

TEST(MembershipTest, AMessageFromAnUnregisteredSessionIsAnsweredByItsClosing) {
  Cluster cluster;
  cluster.Register(0);
  v1::AgentMessage message;
  message.set_incarnation(1);
  message.mutable_heartbeat();
  cluster.Decide(AgentSaid{SessionId{99}, message});
  ASSERT_EQ(cluster.Last<CloseSession>().size(), 1u);
  EXPECT_TRUE(cluster.last.facts.empty());
}

TEST(MembershipTest, AfterARestartNodesHaveTimeToComeBack) {
  Cluster cluster;
  cluster.Register(0);
  cluster.Advance(seconds(30));
  cluster.Restart();
  cluster.Advance(seconds(7));
  cluster.Tick();
  EXPECT_TRUE(cluster.Facts(v1::Fact::kNodeLeft).empty());
  cluster.Register(0);
  EXPECT_EQ(cluster.Facts(v1::Fact::kNodeJoined).size(), 1u);
}

}  // namespace
}  // namespace paceline::core
