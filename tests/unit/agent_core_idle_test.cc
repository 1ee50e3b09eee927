// Workers that outlive a generation, and the next one that takes them up.
#include <gtest/gtest.h>

#include "tests/unit/agent_core_fixture.h"

namespace paceline {
namespace {

TEST_F(AgentCoreTest, WorkersThatHaveLeftTakeUpTheNextGeneration) {
  Run();
  Told(End(1));
  EXPECT_TRUE(TellsOf(Says(0, Left(1, 0)), v1::AgentMessage::kGone).empty());
  EXPECT_EQ(TellsOf(Says(1, Left(1, 1)), v1::AgentMessage::kGone).size(), 1u);
  const auto actions = Told(Start(2));
  EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
  const auto told = Of<TellWorker>(actions);
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[1].command.start().key().generation(), 2u);
  EXPECT_EQ(told[1].command.start().rank(), 1);
  EXPECT_EQ(core_.View().counters.worker_reuses, 2);
  const auto failed = TellsOf(Ends(1, {.signal = SIGKILL}), v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].failed().key().generation(), 2u);
}

TEST_F(AgentCoreTest, AWorkerThatSurvivesItsFailureIsToldOfAtOnceAndKept) {
  Run();
  v1::WorkerMessage failed = Failed(1, 0, "rank 1 is gone");
  failed.mutable_failed()->set_survives(true);
  EXPECT_EQ(TellsOf(Says(0, failed), v1::AgentMessage::kFailed).size(), 1u);
  Says(0, Left(1, 0));
  EXPECT_EQ(TellsOf(Ends(1, {.signal = SIGKILL}), v1::AgentMessage::kFailed).size(), 1u);
  const auto ended = Told(End(1));
  EXPECT_TRUE(Of<TellWorker>(ended).empty()) << "it has left by itself";
  EXPECT_EQ(TellsOf(ended, v1::AgentMessage::kGone).size(), 1u);
  const auto spawned = Of<SpawnWorker>(Told(Start(2)));
  ASSERT_EQ(spawned.size(), 1u);
  EXPECT_EQ(spawned[0].seat, 1);
}

TEST_F(AgentCoreTest, AnIdleWorkerThatNobodyTakesUpIsEnded) {
  Run();
  Told(End(1));
  Says(0, Left(1, 0));
  Says(1, Left(1, 1));
  EXPECT_TRUE(Of<TellWorker>(Advance(3599s)).empty());
  EXPECT_EQ(Of<TellWorker>(Advance(1s)).size(), 2u);
  EXPECT_TRUE(Of<SpawnWorker>(Told(Start(2))).empty()) << "they are on their way out";
  EXPECT_EQ(Of<KillWorker>(Advance(5s)).size(), 2u);
  Ends(0, {.signal = SIGKILL});
  EXPECT_EQ(Of<SpawnWorker>(Ends(1, {.signal = SIGKILL})).size(), 2u);
}

TEST_F(AgentCoreTest, AnIdleWorkerTakesUpAnotherRankAndItsLog) {
  Run();
  Told(End(1));
  Says(0, Left(1, 0));
  Says(1, Left(1, 1));
  v1::CoordinatorMessage swapped = Start(2);
  swapped.mutable_start()->mutable_assignments(0)->set_rank(1);
  swapped.mutable_start()->mutable_assignments(1)->set_rank(0);
  const auto actions = Told(swapped);
  EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
  const auto told = Of<TellWorker>(actions);
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0].seat, 0);
  EXPECT_EQ(told[0].command.start().rank(), 1);
  const auto logs = Of<SwitchLog>(actions);
  ASSERT_EQ(logs.size(), 2u);
  EXPECT_TRUE(logs[0].log_path.ends_with("/logs/rank-00001.log")) << logs[0].log_path;
}

// Another rank's part of the last checkpoint may never be written: the state is wanted then.
TEST_F(AgentCoreTest, AWorkerWhoseRankHasFinishedIsWaitedForAndKept) {
  Run();
  for (const int slot : {0, 1}) Says(slot, Finished(1, slot));
  v1::WorkerMessage left = Left(1, 0);
  left.mutable_left()->set_held_step(7);
  Says(0, left);
  const auto ended = Told(End(1));
  EXPECT_TRUE(std::none_of(ended.begin(), ended.end(), [](const AgentAction& action) {
    const auto* told = std::get_if<TellWorker>(&action);
    return told != nullptr && told->command.has_exit();
  }));
  EXPECT_TRUE(TellsOf(ended, v1::AgentMessage::kGone).empty()) << "one has not left yet";
  left = Left(1, 1);
  left.mutable_left()->set_held_step(7);
  const auto gone = TellsOf(Says(1, left), v1::AgentMessage::kGone);
  ASSERT_EQ(gone.size(), 1u);
  EXPECT_EQ(gone[0].gone().held_size(), 2);
}

TEST_F(AgentCoreTest, WhatNobodyWantsIsForgotten) {
  Run();
  Told(End(1));
  Says(0, Left(1, 0));
  Says(1, Left(1, 1));
  v1::CoordinatorMessage forget = End(1);
  forget.mutable_end()->set_forget(true);
  const auto told = Of<TellWorker>(Told(forget));
  ASSERT_EQ(told.size(), 2u);
  EXPECT_TRUE(told[0].command.has_exit());
}

TEST_F(AgentCoreTest, OneSelfTestAtATimeAndItsResultIsTold) {
  Run();
  v1::CoordinatorMessage ask;
  ask.set_epoch(1);
  ask.mutable_self_test()->set_id(3);
  ask.mutable_self_test()->set_folder("/runs/run/checkpoints");
  const auto begun = Of<BeginSelfTest>(Told(ask));
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].folder, "/runs/run/checkpoints");
  EXPECT_TRUE(Of<BeginSelfTest>(Told(ask)).empty());
  const auto told = TellsOf(Handle(SelfTested{3, absl::InternalError("wrong"), 0.5}),
                            v1::AgentMessage::kSelfTestDone);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].self_test_done().id(), 3u);
  EXPECT_EQ(told[0].self_test_done().error(), "wrong");
  EXPECT_EQ(Of<BeginSelfTest>(Told(ask)).size(), 1u);
}

// Its session was another when it was asked first: the coordinator waits for an answer to this one.
TEST_F(AgentCoreTest, ASelfTestThatIsAskedForDuringAnotherIsMadeAfterIt) {
  Run();
  v1::CoordinatorMessage ask;
  ask.set_epoch(1);
  ask.mutable_self_test()->set_id(7);
  EXPECT_EQ(Of<BeginSelfTest>(Told(ask)).size(), 1u);
  ask.mutable_self_test()->set_id(8);
  EXPECT_TRUE(Of<BeginSelfTest>(Told(ask)).empty());
  const auto after = Handle(SelfTested{7, absl::OkStatus(), 0.5});
  EXPECT_TRUE(TellsOf(after, v1::AgentMessage::kSelfTestDone).empty());
  ASSERT_EQ(Of<BeginSelfTest>(after).size(), 1u);
  EXPECT_EQ(Of<BeginSelfTest>(after)[0].id, 8u);
  const auto told =
      TellsOf(Handle(SelfTested{8, absl::OkStatus(), 0.5}), v1::AgentMessage::kSelfTestDone);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].self_test_done().id(), 8u);
}

TEST_F(AgentCoreTest, AReleasedAgentEndsItsIdleWorkers) {
  Run();
  Told(End(1));
  Says(0, Left(1, 0));
  v1::CoordinatorMessage release;
  release.mutable_release()->set_reason("the run has ended");
  EXPECT_TRUE(Of<TellWorker>(Told(release)).front().command.has_exit());
  const auto left = Of<TellWorker>(Says(1, Left(1, 1)));
  ASSERT_EQ(left.size(), 1u);
  EXPECT_TRUE(left[0].command.has_exit());
  Ends(0, {.exit_code = 0});
  EXPECT_EQ(Of<EndAgent>(Ends(1, {.exit_code = 0})).size(), 1u);
}

// What it held may have been told: the coordinator shall not plan with it.
TEST_F(AgentCoreTest, AnIdleWorkerThatDiesTakesItsStateAlong) {
  Run();
  Told(End(1));
  v1::WorkerMessage left = Left(1, 0);
  left.mutable_left()->set_held_step(12);
  Says(0, left);
  left = Left(1, 1);
  left.mutable_left()->set_held_step(13);
  auto gone = TellsOf(Says(1, left), v1::AgentMessage::kGone);
  ASSERT_EQ(gone.size(), 1u);
  ASSERT_EQ(gone[0].gone().held_size(), 2);
  EXPECT_EQ(gone[0].gone().held(1).step(), 13);
  gone = TellsOf(Ends(1, {.signal = SIGKILL}), v1::AgentMessage::kGone);
  ASSERT_EQ(gone.size(), 1u);
  ASSERT_EQ(gone[0].gone().held_size(), 1);
  EXPECT_EQ(gone[0].gone().held(0).rank(), 0);
}

// Its snapshot outlives the worker, and the agent tells of it.
TEST_F(AgentCoreTest, ADeadWorkersSnapshotsAreHeld) {
  Run();
  v1::WorkerMessage message;
  *message.mutable_snapshot()->mutable_key() = Key(1);
  message.mutable_snapshot()->set_rank(1);
  message.mutable_snapshot()->set_step(20);
  Says(1, Ready(1, 1));
  Says(1, message);
  Ends(1, {.signal = SIGKILL});
  Told(End(1));
  const auto gone = TellsOf(Says(0, Left(1, 0)), v1::AgentMessage::kGone);
  ASSERT_EQ(gone.size(), 1u);
  ASSERT_EQ(gone[0].gone().held_size(), 1);
  EXPECT_EQ(gone[0].gone().held(0).rank(), 1);
  EXPECT_EQ(gone[0].gone().held(0).step(), 20);
}

// Its digest may have been under way when the generation ended.
TEST_F(AgentCoreTest, ASnapshotThatBecomesWholeAfterTheEndIsHeld) {
  Run();
  Told(End(1));
  v1::WorkerMessage message;
  *message.mutable_snapshot()->mutable_key() = Key(1);
  message.mutable_snapshot()->set_step(20);
  Says(0, message);
  Says(0, Left(1, 0));
  const auto gone = TellsOf(Says(1, Left(1, 1)), v1::AgentMessage::kGone);
  ASSERT_EQ(gone.size(), 1u);
  ASSERT_EQ(gone[0].gone().held_size(), 1);
  EXPECT_TRUE(gone[0].gone().held(0).snapshot());
}

TEST_F(AgentCoreTest, ASecondHelloOfAnIdleWorkerEndsIt) {
  Run();
  Told(End(1));
  Says(0, Left(1, 0));
  EXPECT_EQ(Of<KillWorker>(Hello(0)).size(), 1u);
}

TEST_F(AgentCoreTest, SnapshotsGoWhenTheAgentIsReleased) {
  Run();
  v1::WorkerMessage message;
  *message.mutable_snapshot()->mutable_key() = Key(1);
  message.mutable_snapshot()->set_step(20);
  Says(0, message);
  Told(End(1));
  Ends(0, {.exit_code = 0});
  EXPECT_TRUE(Of<RemoveSnapshots>(Ends(1, {.exit_code = 0})).empty()) << "the run may go on";
  v1::CoordinatorMessage release;
  release.mutable_release()->set_reason("the run has ended");
  const auto actions = Told(release);
  ASSERT_EQ(Of<RemoveSnapshots>(actions).size(), 1u);
  EXPECT_EQ(Of<RemoveSnapshots>(actions)[0].run_id, "run");
}

// The end of the generation may come between a survivor's two words.
TEST_F(AgentCoreTest, ASurvivorIsNotToldToGoThoughItHasYetToLeave) {
  Run();
  v1::WorkerMessage failed = Failed(1, 0, "rank 1 is gone");
  failed.mutable_failed()->set_survives(true);
  Says(0, failed);
  for (const TellWorker& told : Of<TellWorker>(Told(End(1)))) {
    EXPECT_FALSE(told.command.has_exit());
  }
}

TEST_F(AgentCoreTest, AWorkerMayComputeItsStepToTheEndBeforeItLeaves) {
  Run();
  v1::WorkerMessage message;
  message.mutable_progress()->set_rank(0);
  message.mutable_progress()->set_step(12);  // two after start_step
  message.mutable_progress()->set_step_seconds(40);
  Says(0, message);
  Told(End(1));
  EXPECT_TRUE(Of<KillWorker>(Advance(64s)).empty());
  EXPECT_EQ(Of<KillWorker>(Advance(1s)).size(), 2u) << "three steps and the time to shut down";
}

TEST_F(AgentCoreTest, ARankThatFinishesAsItsGenerationEndsIsKept) {
  Run();
  Told(End(1));
  EXPECT_TRUE(Of<TellWorker>(Says(0, Finished(1, 0))).empty());
  Ends(1, {.signal = SIGKILL});
  v1::WorkerMessage left = Left(1, 0);
  left.mutable_left()->set_held_step(7);
  const auto gone = TellsOf(Says(0, left), v1::AgentMessage::kGone);
  ASSERT_EQ(gone.size(), 1u);
  ASSERT_EQ(gone[0].gone().held_size(), 1);
  EXPECT_EQ(gone[0].gone().held(0).step(), 7);
  EXPECT_EQ(Of<SpawnWorker>(Told(Start(2))).size(), 1u);
}

TEST_F(AgentCoreTest, WhatIsForgottenWhileItsGenerationEndsGoesAsItLeaves) {
  Run();
  Told(End(1));
  v1::CoordinatorMessage forget = End(2);  // one that this node had no part in
  forget.mutable_end()->set_forget(true);
  Told(forget);
  const auto told = Of<TellWorker>(Says(0, Left(1, 0)));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_TRUE(told[0].command.has_exit());
}

// Its run is over: the node is released, or told to forget it where it serves others too.
TEST_F(AgentCoreTest, AWorkerWhoseRankHasFinishedGoesWithTheRun) {
  Run();
  for (const int slot : {0, 1}) {
    Says(slot, Finished(1, slot));
    Says(slot, Left(1, slot));
  }
  EXPECT_TRUE(Of<TellWorker>(Told(End(1))).empty());
  v1::CoordinatorMessage forget = End(1);
  forget.mutable_end()->set_forget(true);
  const auto told = Of<TellWorker>(Told(forget));
  ASSERT_EQ(told.size(), 2u);
  EXPECT_TRUE(told[0].command.has_exit());
  for (const int slot : {0, 1}) Ends(slot, {.exit_code = 0});
  EXPECT_EQ(core_.View().counters.workers_finished, 2);
}

}  // namespace
}  // namespace paceline
