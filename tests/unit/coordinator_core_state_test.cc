#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/core/state.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

// A history with every kind of fact in it.
std::vector<v1::Fact> History() {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Run(seconds(11), {0, 1});
  cluster.Checkpoint(10);
  cluster.Checkpoint(20);
  cluster.Checkpoint(30);
  cluster.Progress(0, 0, 33);
  cluster.Stop("pause");
  cluster.Run(seconds(10), {0});
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  cluster.Register(0, 2, 2, "run");
  cluster.Register(1, 2, 2, "run");
  cluster.Restart();
  return cluster.facts;
}

TEST(StateTest, TheHistoryHoldsEveryKindOfFact) {
  std::set<v1::Fact::BodyCase> kinds;
  for (const v1::Fact& fact : History()) kinds.insert(fact.body_case());
  EXPECT_EQ(kinds.size(), 14u);
}

TEST(StateTest, ASnapshotAndTheTailGiveWhatFullReplayGives) {
  const std::vector<v1::Fact> facts = History();
  State full;
  for (const v1::Fact& fact : facts) ASSERT_TRUE(full.Evolve(fact).ok());
  for (std::size_t cut = 0; cut <= facts.size(); ++cut) {
    State head;
    for (std::size_t i = 0; i < cut; ++i) ASSERT_TRUE(head.Evolve(facts[i]).ok());
    absl::StatusOr<State> state = State::FromSnapshot(head.ToSnapshot());
    ASSERT_TRUE(state.ok()) << state.status();
    for (std::size_t i = cut; i < facts.size(); ++i) {
      const absl::Status evolved = state->Evolve(facts[i]);
      ASSERT_TRUE(evolved.ok()) << evolved;
    }
    EXPECT_EQ(state->ToSnapshot().SerializeAsString(), full.ToSnapshot().SerializeAsString());
    for (const auto& [id, node] : full.nodes) EXPECT_EQ(state->nodes.at(id).payer, node.payer);
    EXPECT_EQ(state->runs.at("run").nodes, full.runs.at("run").nodes);
  }
}

TEST(StateTest, AFactOutOfOrderIsRefusedAndChangesNothing) {
  const std::vector<v1::Fact> facts = History();
  State state;
  for (std::size_t i = 0; i < 5; ++i) ASSERT_TRUE(state.Evolve(facts[i]).ok());
  const std::string before = state.ToSnapshot().SerializeAsString();
  for (std::size_t i = 0; i < facts.size(); ++i) {
    if (i == 5) continue;
    EXPECT_EQ(state.Evolve(facts[i]).code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(state.ToSnapshot().SerializeAsString(), before);
}

TEST(StateTest, FactsThatDoNotFollowAreRefusedAndNamed) {
  const std::vector<v1::Fact> facts = History();
  State state;
  std::size_t next = 0;
  while (!facts[next].has_window_granted()) ASSERT_TRUE(state.Evolve(facts[next++]).ok());
  const auto refusal = [&](const std::function<void(v1::Fact*)>& spoil) {
    v1::Fact fact = facts[next];
    spoil(&fact);
    State copy = state;
    const absl::Status status = copy.Evolve(fact);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    return std::string(status.message());
  };
  EXPECT_THAT(refusal([](v1::Fact* fact) {
                fact->mutable_window_granted()->mutable_window()->set_first_step(5);
              }),
              HasSubstr("window [5,"));
  EXPECT_THAT(refusal([](v1::Fact* fact) {
                fact->mutable_window_granted()->mutable_key()->set_generation(9);
              }),
              HasSubstr("generation 9 of run run is not open"));
  EXPECT_THAT(refusal([](v1::Fact* fact) { fact->set_at_ms(1); }), HasSubstr("its time 1"));
  EXPECT_THAT(refusal([](v1::Fact* fact) { fact->clear_body(); }), HasSubstr("kind is unknown"));
  EXPECT_THAT(refusal([](v1::Fact* fact) { fact->mutable_charge_posted()->set_node_id(1); }),
              HasSubstr("leaves a gap or overlaps"));
}

TEST(StateTest, ACrashBetweenAnyTwoFactsLeavesAWayOn) {
  // The tail of the journal is lost at every point; opening again must find a way on.
  const std::vector<v1::Fact> facts = History();
  for (std::size_t cut = 1; cut <= facts.size(); ++cut) {
    Core core(CoreOptions{.epoch = Epoch{9}});
    for (std::size_t i = 0; i < cut; ++i) ASSERT_TRUE(core.Evolve(facts[i]).ok());
    const Now now{SteadyTime(std::chrono::hours(9)), facts.back().at_ms()};
    core.Open(now);
    core.Decide(Tick{}, {now.steady + seconds(60), now.wall_ms + 60'000});
    for (const auto& [id, node] : core.state().nodes) EXPECT_FALSE(node.alive);
    for (const auto& [id, run] : core.state().runs) {
      EXPECT_FALSE(run.generation_open);
      if (run.ended()) {
        EXPECT_TRUE(run.windows.empty());
      }
    }
  }
}

}  // namespace
}  // namespace paceline::core
