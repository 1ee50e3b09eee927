// Workers that are kept ready for a rank whose worker dies.
#include <gtest/gtest.h>

#include "tests/unit/agent_core_fixture.h"

namespace paceline {
namespace {

constexpr char kRunFile[] =
    "[run]\nname = \"run\"\n"
    "[model]\nvocab_size = 256\nhidden_size = 32\nnum_hidden_layers = 1\n"
    "num_attention_heads = 2\nintermediate_size = 64\n"
    "[data]\ntrain = \"corpus\"\n"
    "[train]\nsequence_length = 16\nglobal_batch_size = 8\nmicro_batch_size = 2\nsteps = 100\n"
    "learning_rate = 1e-3\n"
    "[launch]\nslots_per_node = 2\n";

class WarmWorkersTest : public AgentCoreTest {
 protected:
  v1::CoordinatorMessage StartWith(std::uint64_t generation, const std::string& settings = "") {
    v1::CoordinatorMessage message = Start(generation);
    message.mutable_start()->set_run_file(kRunFile + settings);
    return message;
  }
  std::vector<AgentAction> Progresses(int seat, int rank, std::int64_t step = 12) {
    v1::WorkerMessage message;
    message.mutable_progress()->set_rank(rank);
    message.mutable_progress()->set_step(step);
    return Says(seat, message);
  }
  // Both ranks have completed a step of generation 1. What the last one led to.
  std::vector<AgentAction> RunAndStep(const std::string& settings = "") {
    Register();
    Told(StartWith(1, settings));
    Hello(0);
    Hello(1);
    Progresses(0, 0);
    return Progresses(1, 1);
  }
  std::vector<AgentAction> Loads(int seat) {
    v1::WorkerMessage message;
    message.mutable_warm();
    return Says(seat, message);
  }
  void StepWithOneWarm() {
    RunAndStep();
    Hello(2);
    Loads(2);
  }
  // The worker in seat 1 is killed, the other one leaves.
  void LoseOne() {
    Ends(1, {.signal = SIGKILL});
    Told(End(1));
    Says(0, Left(1, 0));
  }
};

TEST_F(WarmWorkersTest, OneIsStartedWhenEveryRankHasStepped) {
  Register();
  Told(StartWith(1));
  Hello(0);
  Hello(1);
  EXPECT_TRUE(Of<SpawnWorker>(Progresses(0, 0)).empty()) << "the other has yet to step";
  EXPECT_TRUE(Of<SpawnWorker>(Progresses(1, 1, /*step=*/10)).empty()) << "it has completed none";
  const auto spawned = Of<SpawnWorker>(Progresses(1, 1));
  ASSERT_EQ(spawned.size(), 1u);
  EXPECT_EQ(spawned[0].seat, 2);
  EXPECT_FALSE(spawned[0].rank.has_value());
  EXPECT_EQ(spawned[0].log_path, "/runs/run/logs/warm-node-0.log");
  const auto told = Of<TellWorker>(Hello(2));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].command.warm_up().run_file(), kRunFile);
  EXPECT_EQ(core_.View().warm_workers, 0) << "it has yet to load";
  EXPECT_TRUE(Loads(2).empty());
  EXPECT_EQ(core_.View().warm_workers, 1);
}

TEST_F(WarmWorkersTest, AsManyAsTheRunFileSaysAtMostOneARankAndOneAtATime) {
  EXPECT_EQ(Of<SpawnWorker>(RunAndStep("[failure]\nwarm_workers = 9\n")).size(), 1u);
  EXPECT_TRUE(Of<SpawnWorker>(Hello(2)).empty());
  const auto second = Of<SpawnWorker>(Loads(2));
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].seat, 3);
  Hello(3);
  EXPECT_TRUE(Of<SpawnWorker>(Loads(3)).empty());
}

TEST_F(WarmWorkersTest, NoneWhereTheRunFileWantsNone) {
  EXPECT_TRUE(Of<SpawnWorker>(RunAndStep("[failure]\nwarm_workers = 0\n")).empty());
}

TEST_F(WarmWorkersTest, ADeadWorkersSlotIsGivenToIt) {
  StepWithOneWarm();
  LoseOne();
  const auto actions = Told(StartWith(2));
  EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
  const auto told = Of<TellWorker>(actions);
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[1].seat, 2);
  EXPECT_EQ(told[1].command.start().key().generation(), 2u);
  EXPECT_EQ(told[1].command.start().rank(), 1);
  const auto logs = Of<SwitchLog>(actions);
  ASSERT_EQ(logs.size(), 1u);
  EXPECT_EQ(logs[0].seat, 2);
  EXPECT_EQ(logs[0].log_path, "/runs/run/logs/rank-00001.log");
  EXPECT_EQ(core_.View().counters.warm_uses, 1);

  // It is a worker as any other now, and its end the rank's.
  const auto failed = TellsOf(Ends(2, {.signal = SIGKILL}), v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].failed().key().generation(), 2u);
  EXPECT_EQ(failed[0].failed().rank(), 1);
}

TEST_F(WarmWorkersTest, AnotherIsStartedBehindItWhenTheRecoveryIsOver) {
  StepWithOneWarm();
  LoseOne();
  Told(StartWith(2));
  EXPECT_TRUE(Of<SpawnWorker>(Progresses(0, 0)).empty());
  const auto spawned = Of<SpawnWorker>(Progresses(2, 1));
  ASSERT_EQ(spawned.size(), 1u);
  EXPECT_EQ(spawned[0].seat, 1) << "the dead one's";
}

TEST_F(WarmWorkersTest, WhereItDoesNotSufficeANewProcessIsStarted) {
  StepWithOneWarm();
  Ends(0, {.signal = SIGKILL});
  Ends(1, {.signal = SIGKILL});
  Told(End(1));
  const auto actions = Told(StartWith(2));
  const auto spawned = Of<SpawnWorker>(actions);
  ASSERT_EQ(spawned.size(), 1u);
  EXPECT_EQ(spawned[0].rank, 1);
  EXPECT_EQ(Of<TellWorker>(actions).size(), 1u);
}

TEST_F(WarmWorkersTest, OneThatHasNotSaidHelloGetsNoRank) {
  RunAndStep();
  LoseOne();
  const auto spawned = Of<SpawnWorker>(Told(StartWith(2)));
  ASSERT_EQ(spawned.size(), 1u);
  EXPECT_EQ(spawned[0].rank, 1);
}

// It may be stopped, and the generation would wait for it as long as a start may take.
TEST_F(WarmWorkersTest, OneThatHasFallenSilentGetsNoRank) {
  StepWithOneWarm();
  Advance(1001ms);
  LoseOne();
  const auto spawned = Of<SpawnWorker>(Told(StartWith(2)));
  ASSERT_EQ(spawned.size(), 1u);
  EXPECT_EQ(spawned[0].rank, 1);
}

TEST_F(WarmWorkersTest, OneThatStaysSilentIsReplaced) {
  StepWithOneWarm();
  EXPECT_TRUE(Of<KillWorker>(Advance(4s)).empty());
  const auto killed = Of<KillWorker>(Advance(1ms));
  ASSERT_EQ(killed.size(), 1u);
  EXPECT_EQ(killed[0].seat, 2);
  EXPECT_TRUE(Of<KillWorker>(Advance(1s)).empty()) << "it has been";
  Ends(2, {.signal = SIGKILL});
  EXPECT_EQ(Of<SpawnWorker>(Advance(1s)).size(), 1u);
}

TEST_F(WarmWorkersTest, ItsDeathIsNobodysFailureAndItIsReplacedEverLater) {
  StepWithOneWarm();
  auto pause = 1s;
  for (int death = 0; death < 3; ++death) {
    const auto actions = Ends(2, {.signal = SIGKILL});
    EXPECT_TRUE(Of<TellCoordinator>(actions).empty());
    EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
    EXPECT_TRUE(Of<SpawnWorker>(Advance(pause - 1ms)).empty());
    EXPECT_EQ(Of<SpawnWorker>(Advance(1ms)).size(), 1u);
    Hello(2);
    Loads(2);
    pause *= 2;
  }
  EXPECT_EQ(core_.View().counters.warm_ended, 3);
  EXPECT_EQ(core_.View().counters.workers_failed, 0);
}

TEST_F(WarmWorkersTest, OneThatCannotBeStartedIsNobodysFailure) {
  RunAndStep();
  const auto actions = Handle(WorkerNotSpawned{2, absl::NotFoundError("no such program")});
  EXPECT_TRUE(Of<TellCoordinator>(actions).empty());
  EXPECT_LE(core_.NextDeadline(), now_.steady + 1s);
  EXPECT_EQ(Of<SpawnWorker>(Advance(1s)).size(), 1u);
}

TEST_F(WarmWorkersTest, TheyGoWithTheRun) {
  StepWithOneWarm();
  Says(0, Finished(1, 0));
  Says(1, Finished(1, 1));
  EXPECT_TRUE(Of<KillWorker>(Told(End(1))).empty()) << "the run may go on";
  v1::CoordinatorMessage release;
  release.set_epoch(1);
  release.mutable_release()->set_reason("run run has ended");
  const auto killed = Of<KillWorker>(Told(release));
  ASSERT_EQ(killed.size(), 1u);
  EXPECT_EQ(killed[0].seat, 2);
}

TEST_F(WarmWorkersTest, TheyAreForgottenWithTheRun) {
  StepWithOneWarm();
  LoseOne();
  v1::CoordinatorMessage forget = End(1);
  forget.mutable_end()->set_forget(true);
  const auto killed = Of<KillWorker>(Told(forget));
  ASSERT_EQ(killed.size(), 1u);
  EXPECT_EQ(killed[0].seat, 2);
  Told(StartWith(2));
  EXPECT_EQ(Of<SpawnWorker>(Ends(0, {.exit_code = 0})).size(), 2u) << "it is on its way out";
}

TEST_F(WarmWorkersTest, WithoutAnotherGenerationTheyAreEnded) {
  StepWithOneWarm();
  LoseOne();
  for (int second = 1; second < 3600; ++second) {
    EXPECT_TRUE(Of<KillWorker>(Advance(1s)).empty());
    Loads(2);
  }
  EXPECT_EQ(Of<KillWorker>(Advance(1s)).size(), 1u);
}

TEST_F(WarmWorkersTest, AnAgentEndsWhenTheLastOfThemHas) {
  StepWithOneWarm();
  v1::CoordinatorMessage release;
  release.mutable_release()->set_reason("the run has ended");
  EXPECT_EQ(Of<KillWorker>(Told(release)).size(), 1u);
  Ends(0, {.exit_code = 0});
  EXPECT_TRUE(Of<EndAgent>(Ends(1, {.exit_code = 0})).empty());
  EXPECT_EQ(Of<EndAgent>(Ends(2, {.signal = SIGKILL})).size(), 1u);
}

TEST_F(WarmWorkersTest, OneOfAnotherReleaseIsEnded) {
  RunAndStep();
  sessions_[2] = ++last_session_;
  v1::WorkerMessage hello;
  hello.mutable_hello()->set_seat(2);
  hello.mutable_hello()->set_protocol_version(kWorkerProtocolVersion + 1);
  const auto actions = Says(2, hello);
  EXPECT_EQ(Of<KillWorker>(actions).size(), 1u);
  EXPECT_TRUE(Of<TellCoordinator>(actions).empty());
}

TEST_F(WarmWorkersTest, AnotherRunsSlotIsNotGivenToIt) {
  StepWithOneWarm();
  Ends(0, {.signal = SIGKILL});
  Ends(1, {.signal = SIGKILL});
  Told(End(1));
  v1::CoordinatorMessage other = StartWith(1);
  other.mutable_start()->mutable_key()->set_run_id("other");
  EXPECT_EQ(Of<SpawnWorker>(Told(other)).size(), 2u);
}

}  // namespace
}  // namespace paceline
