// The agent's decisions, without a socket, a process or a clock.
#include "worker/agent/agent_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/agent_core_fixture.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

TEST_F(AgentCoreTest, StartSpawnsOneWorkerASlotAndARepeatNone) {
  Register();
  const auto spawned = Of<SpawnWorker>(Told(Start(1)));
  ASSERT_EQ(spawned.size(), 2u);
  EXPECT_EQ(spawned[1].seat, 1);
  EXPECT_EQ(spawned[1].rank, 1);
  EXPECT_EQ(spawned[1].log_path, "/runs/run/logs/rank-00001.log");
  EXPECT_TRUE(Of<SpawnWorker>(Told(Start(1))).empty());
}

TEST_F(AgentCoreTest, HelloIsAnsweredWithItsRankAndWhatWasGrantedSince) {
  Register();
  Told(Start(1));
  v1::CoordinatorMessage grant;
  *grant.mutable_window_grant()->mutable_key() = Key(1);
  grant.mutable_window_grant()->mutable_window()->set_first_step(20);
  grant.mutable_window_grant()->mutable_window()->set_end_step(30);
  EXPECT_TRUE(Of<TellWorker>(Told(grant)).empty());
  const auto told = Of<TellWorker>(Hello(1));
  ASSERT_EQ(told.size(), 1u);
  const v1::RankStart& start = told[0].command.start();
  EXPECT_EQ(start.rank(), 1);
  EXPECT_EQ(start.start_step(), 10);
  ASSERT_EQ(start.windows_size(), 1);
  EXPECT_EQ(start.windows(0).end_step(), 30);
}

TEST_F(AgentCoreTest, PeersAreForwardedOnceAndToLateWorkersToo) {
  Register();
  Told(Start(1));
  Hello(0);
  v1::CoordinatorMessage peers;
  *peers.mutable_peers()->mutable_key() = Key(1);
  EXPECT_EQ(Of<TellWorker>(Told(peers)).size(), 1u);
  EXPECT_TRUE(Of<TellWorker>(Told(peers)).empty());
  EXPECT_EQ(Of<TellWorker>(Hello(1)).size(), 2u);
}

TEST_F(AgentCoreTest, StepsAreRecordedWithTheLineagesTokens) {
  Run();
  Says(0, Step(11));
  const auto lines = Of<AppendRecord>(Says(0, Step(12)));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].path, "/runs/run/steps.jsonl");
  EXPECT_THAT(lines[0].line, HasSubstr("\"step\":12"));
  EXPECT_THAT(lines[0].line, HasSubstr("\"tokens\":1200"));
  EXPECT_TRUE(Of<AppendRecord>(Says(1, Step(12))).empty()) << "only rank 0 reports steps";
}

TEST_F(AgentCoreTest, StepsAreRecordedWhileTheCoordinatorIsAway) {
  Run();
  Handle(CoordinatorLost{absl::UnavailableError("gone")});
  const auto actions = Says(0, Step(11));
  EXPECT_EQ(Of<AppendRecord>(actions).size(), 1u);
  EXPECT_TRUE(Of<TellCoordinator>(actions).empty());
  EXPECT_TRUE(Of<KillWorker>(Advance(1h)).empty());
}

TEST_F(AgentCoreTest, HeartbeatCarriesTheLatestProgressAtTheInterval) {
  Run();
  v1::WorkerMessage progress;
  progress.mutable_progress()->set_rank(1);
  progress.mutable_progress()->set_step(11);
  Says(1, progress);
  Says(0, Step(11));
  EXPECT_TRUE(Of<TellCoordinator>(Advance(499ms)).empty());
  const auto told = Of<TellCoordinator>(Advance(1ms));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].message.heartbeat().progress(0).ranks(0).telemetry_age_ms(), 500);
  EXPECT_TRUE(told[0].newest_only);
  EXPECT_EQ(told[0].message.incarnation(), 77u);
  ASSERT_EQ(told[0].message.heartbeat().progress_size(), 1);
  const v1::NodeProgress& node = told[0].message.heartbeat().progress(0);
  ASSERT_EQ(node.ranks_size(), 1);
  EXPECT_EQ(node.ranks(0).step(), 11);
  EXPECT_EQ(node.step().step(), 11);
  EXPECT_EQ(node.tokens(), 1100);
}

TEST_F(AgentCoreTest, LastStepReachesTheCoordinatorBeforeTheRanksEnd) {
  Run();
  Says(0, Step(20));
  Handle(RecordWritten{1, absl::OkStatus()});
  const auto told = Of<TellCoordinator>(Says(0, Finished(1, 0)));
  ASSERT_EQ(told.size(), 3u);
  EXPECT_EQ(told[0].message.heartbeat().progress(0).step().step(), 20);
  EXPECT_FALSE(told[0].newest_only);
  EXPECT_TRUE(told[1].message.has_finished());
  EXPECT_TRUE(told[2].message.has_heartbeat());
}

// Who hears of a run's end finds its last step in the file.
TEST_F(AgentCoreTest, RanksEndIsToldWhenItsLastStepIsWritten) {
  Run();
  EXPECT_EQ(Of<AppendRecord>(Says(0, Step(19)))[0].number, 1u);
  EXPECT_EQ(Of<AppendRecord>(Says(0, Step(20)))[0].number, 2u);
  EXPECT_TRUE(Of<TellCoordinator>(Says(0, Finished(1, 0))).empty());
  EXPECT_TRUE(Of<TellCoordinator>(Handle(RecordWritten{1, absl::OkStatus()})).empty());
  EXPECT_EQ(Of<TellCoordinator>(Advance(500ms)).size(), 1u) << "a heartbeat goes on its own time";
  const auto told = Of<TellCoordinator>(Handle(RecordWritten{2, absl::OkStatus()}));
  ASSERT_EQ(told.size(), 3u);
  EXPECT_EQ(told[0].message.heartbeat().progress(0).step().step(), 20);
  EXPECT_TRUE(told[1].message.has_finished());
  EXPECT_TRUE(told[2].message.has_heartbeat());
}

TEST_F(AgentCoreTest, DiskThatTakesTooLongHoldsUpNoFailure) {
  Run();
  Says(0, Step(11));
  EXPECT_TRUE(TellsOf(Ends(1, {.signal = SIGKILL}), v1::AgentMessage::kFailed).empty());
  EXPECT_TRUE(TellsOf(Advance(999ms), v1::AgentMessage::kFailed).empty());
  EXPECT_LE(core_.NextDeadline(), now_.steady + 1ms);
  EXPECT_EQ(TellsOf(Advance(1ms), v1::AgentMessage::kFailed).size(), 1u);
}

TEST_F(AgentCoreTest, WindowsAreAskedForWithoutWaitingForRecords) {
  Run();
  Says(0, Step(11));
  v1::WorkerMessage request;
  *request.mutable_window_request()->mutable_key() = Key(1);
  request.mutable_window_request()->set_until_step(40);
  EXPECT_EQ(TellsOf(Says(0, request), v1::AgentMessage::kWindowRequest).size(), 1u);
}

TEST_F(AgentCoreTest, WhatWaitsForRecordsIsToldOnceAfterAReconnect) {
  Run();
  Says(0, Step(20));
  Says(0, Finished(1, 0));
  Handle(CoordinatorLost{absl::UnavailableError("gone")});
  EXPECT_TRUE(TellsOf(Register(), v1::AgentMessage::kFinished).empty());
  const auto actions = Handle(RecordWritten{1, absl::OkStatus()});
  EXPECT_EQ(TellsOf(actions, v1::AgentMessage::kFinished).size(), 1u);
}

TEST_F(AgentCoreTest, AgentEndsOnlyWhenItsLastWordsAreTold) {
  Run();
  Says(0, Step(11));
  Handle(ShutdownAsked{"SIGTERM"});
  Ends(0, {.exit_code = 0});
  EXPECT_TRUE(Of<EndAgent>(Ends(1, {.exit_code = 0})).empty());
  const auto actions = Handle(RecordWritten{1, absl::OkStatus()});
  EXPECT_EQ(TellsOf(actions, v1::AgentMessage::kFailed).size(), 2u);
  EXPECT_EQ(TellsOf(actions, v1::AgentMessage::kGone).size(), 1u);
  EXPECT_EQ(Of<EndAgent>(actions).size(), 1u);
}

TEST_F(AgentCoreTest, LostRecordsAreCountedAndOneThatNeverWaitedAnswersForNoOther) {
  Run();
  Says(0, Step(20));
  Says(0, Finished(1, 0));
  const auto refused = Handle(RecordWritten{0, absl::ResourceExhaustedError("full")});
  EXPECT_TRUE(TellsOf(refused, v1::AgentMessage::kFinished).empty());
  const auto failed = Handle(RecordWritten{1, absl::UnavailableError("no space")});
  EXPECT_EQ(TellsOf(failed, v1::AgentMessage::kFinished).size(), 1u);
  EXPECT_EQ(core_.View().counters.record_errors, 2);
}

TEST_F(AgentCoreTest, WorkerKilledBeforeItWasStartedIsNoFailure) {
  Register();
  Told(Start(1));
  EXPECT_EQ(Of<KillWorker>(Told(End(1))).size(), 2u);
  Handle(WorkerNotSpawned{0, absl::CancelledError("ended")});
  const auto actions = Handle(WorkerNotSpawned{1, absl::CancelledError("ended")});
  EXPECT_TRUE(TellsOf(actions, v1::AgentMessage::kFailed).empty());
  EXPECT_EQ(TellsOf(actions, v1::AgentMessage::kGone).size(), 1u);
  EXPECT_EQ(core_.View().counters.workers_failed, 0);
  EXPECT_EQ(core_.View().counters.workers_ended, 2);
}

TEST_F(AgentCoreTest, HeartbeatNamesGenerationsWithoutProgressAndThoseThatEnd) {
  Run();
  EXPECT_EQ(Of<TellCoordinator>(Advance(500ms))[0].message.heartbeat().progress_size(), 1);
  Told(End(1));
  EXPECT_EQ(Of<TellCoordinator>(Advance(500ms))[0].message.heartbeat().progress_size(), 1);
  Ends(0, {.exit_code = 0});
  Ends(1, {.exit_code = 0});
  EXPECT_EQ(Of<TellCoordinator>(Advance(500ms))[0].message.heartbeat().progress_size(), 0);
}

// A window granted just before a crash of the coordinator reaches the node with the repeat.
TEST_F(AgentCoreTest, RepeatedStartBringsTheWindowsGrantedMeanwhile) {
  Run();
  v1::CoordinatorMessage start = Start(1);
  v1::Window& window = *start.mutable_start()->add_windows();
  window.set_first_step(20);
  window.set_end_step(40);
  const auto told = Of<TellWorker>(Told(start));
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0].command.window_grant().window().end_step(), 40);
  EXPECT_TRUE(Of<TellWorker>(Told(start)).empty());
}

TEST_F(AgentCoreTest, KilledWorkerIsReportedWithItsSignalAndLastWords) {
  Run();
  const auto failed = TellsOf(Ends(1, {.signal = SIGKILL}), v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].failed().rank(), 1);
  EXPECT_EQ(failed[0].failed().signal(), SIGKILL);
  EXPECT_EQ(failed[0].failed().exit_code(), -1);
  ASSERT_EQ(failed[0].failed().stderr_tail_size(), 1);
  EXPECT_EQ(failed[0].failed().stderr_tail(0), "last words");
  EXPECT_THAT(failed[0].failed().error(), HasSubstr("signal 9"));
}

// The pidfd and the socket are different threads' matter: the exit may be seen first.
TEST_F(AgentCoreTest, WorkersOwnErrorIsKeptThoughItsExitIsSeenFirst) {
  Run();
  EXPECT_TRUE(
      TellsOf(Handle(WorkerExited{0, {.exit_code = 70}, {"tail"}}), v1::AgentMessage::kFailed)
          .empty());
  EXPECT_TRUE(TellsOf(Says(0, Failed(1, 0, "shard torn")), v1::AgentMessage::kFailed).empty());
  const auto failed =
      TellsOf(Handle(WorkerSessionClosed{0, sessions_[0]}), v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].failed().error(), "shard torn");
  EXPECT_EQ(failed[0].failed().exit_code(), 70);
  EXPECT_EQ(failed[0].failed().status_code(), static_cast<int>(absl::StatusCode::kDataLoss));
}

TEST_F(AgentCoreTest, FailureIsToldOnceThoughTheProcessLivesOn) {
  Run();
  Says(0, Failed(1, 0, "NaN in rank 0"));
  const auto failed = TellsOf(Advance(500ms), v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].failed().exit_code(), -1);
  EXPECT_TRUE(TellsOf(Ends(0, {.exit_code = 1}), v1::AgentMessage::kFailed).empty());
}

TEST_F(AgentCoreTest, CleanExitBeforeTheRankFinishedIsAFailure) {
  Run();
  EXPECT_EQ(TellsOf(Ends(0, {.exit_code = 0}), v1::AgentMessage::kFailed).size(), 1u);
}

TEST_F(AgentCoreTest, ExitAfterTheRankFinishedIsNoFailure) {
  Run();
  Says(0, Finished(1, 0));
  EXPECT_TRUE(TellsOf(Ends(0, {.exit_code = 0}), v1::AgentMessage::kFailed).empty());
}

TEST_F(AgentCoreTest, EndTellsWorkersKillsTheStubbornAndThenAnswersGone) {
  Run();
  const auto told = Of<TellWorker>(Told(End(1)));
  ASSERT_EQ(told.size(), 2u);
  EXPECT_TRUE(told[0].command.has_abort());
  EXPECT_TRUE(TellsOf(Ends(0, {.exit_code = 0}), v1::AgentMessage::kGone).empty());
  EXPECT_TRUE(Of<KillWorker>(Advance(4999ms)).empty());
  const auto killed = Of<KillWorker>(Advance(1ms));
  ASSERT_EQ(killed.size(), 1u);
  EXPECT_EQ(killed[0].seat, 1);
  const auto actions = Ends(1, {.signal = SIGKILL});
  EXPECT_EQ(TellsOf(actions, v1::AgentMessage::kGone).size(), 1u);
  EXPECT_TRUE(TellsOf(actions, v1::AgentMessage::kFailed).empty());
  EXPECT_TRUE(core_.View().ranks.empty());
}

TEST_F(AgentCoreTest, EndOfAnUnknownGenerationIsAnsweredGone) {
  Register();
  EXPECT_EQ(TellsOf(Told(End(9)), v1::AgentMessage::kGone).size(), 1u);
}

TEST_F(AgentCoreTest, StartOfAnEndedGenerationIsAnsweredGone) {
  Run();
  Told(End(1));
  Ends(0, {.exit_code = 0});
  Ends(1, {.exit_code = 0});
  const auto actions = Told(Start(1));
  EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
  EXPECT_EQ(TellsOf(actions, v1::AgentMessage::kGone).size(), 1u);
}

TEST_F(AgentCoreTest, NewerGenerationWaitsForTheSlotsOfTheOlder) {
  Run();
  EXPECT_TRUE(Of<SpawnWorker>(Told(Start(2))).empty());
  EXPECT_TRUE(Of<SpawnWorker>(Ends(0, {.exit_code = 0})).empty());
  const auto actions = Ends(1, {.exit_code = 0});
  EXPECT_EQ(Of<SpawnWorker>(actions).size(), 2u);
  EXPECT_TRUE(Of<SpawnWorker>(Told(Start(1))).empty()) << "the older must not come back";
}

TEST_F(AgentCoreTest, WordsOfAnEarlierSessionOrGenerationChangeNothing) {
  Run();
  const std::uint64_t old_session = sessions_[0];
  Told(Start(2));
  Ends(0, {.exit_code = 0});
  Ends(1, {.exit_code = 0});
  Hello(0);
  EXPECT_TRUE(Handle(WorkerSaid{0, old_session, Step(11), {}}).empty());
  EXPECT_TRUE(Handle(WorkerSessionClosed{0, old_session}).empty());
  EXPECT_TRUE(Says(0, Ready(1, 0)).empty());
}

TEST_F(AgentCoreTest, ReconnectTellsAgainWhatWasNotAcknowledged) {
  Run();
  Says(0, Ready(1, 0));
  Handle(CoordinatorLost{absl::UnavailableError("crash")});
  EXPECT_TRUE(Of<TellCoordinator>(Says(1, Ready(1, 1))).empty());
  const auto actions = Register(/*epoch=*/2);
  EXPECT_EQ(TellsOf(actions, v1::AgentMessage::kReady).size(), 2u);
}

TEST_F(AgentCoreTest, LowerEpochIsNotObeyedAndDropped) {
  Register(/*epoch=*/3);
  Handle(CoordinatorLost{absl::UnavailableError("crash")});
  EXPECT_EQ(Of<DropCoordinator>(Register(/*epoch=*/2)).size(), 1u);
  const auto actions = Told(Start(1), /*epoch=*/2);
  EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
  EXPECT_TRUE(Of<SpawnWorker>(Told(Start(1), /*epoch=*/3)).empty())
      << "what is left of a dropped stream";
  Register(/*epoch=*/3);
  EXPECT_EQ(Of<SpawnWorker>(Told(Start(1), /*epoch=*/3)).size(), 2u);
}

TEST_F(AgentCoreTest, RefusedAgentKillsItsWorkersAndEndsWorthARetry) {
  Run();
  const auto actions = Handle(CoordinatorLost{absl::FailedPreconditionError("replaced")});
  EXPECT_EQ(Of<KillWorker>(actions).size(), 2u);
  EXPECT_TRUE(Of<EndAgent>(actions).empty()) << "workers live";
  Ends(0, {.signal = SIGKILL});
  const auto end = Of<EndAgent>(Ends(1, {.signal = SIGKILL}));
  ASSERT_EQ(end.size(), 1u);
  EXPECT_EQ(end[0].code, ExitCode::kRetry);
}

TEST_F(AgentCoreTest, WrongTokenEndsAnAgentThatNeverRegistered) {
  const auto end = Of<EndAgent>(Handle(CoordinatorLost{absl::UnauthenticatedError("token")}));
  ASSERT_EQ(end.size(), 1u);
  EXPECT_EQ(end[0].code, ExitCode::kBadInput);
}

TEST_F(AgentCoreTest, ReleaseEndsAnIdleAgentAtOnce) {
  Register();
  v1::CoordinatorMessage release;
  release.mutable_release()->set_reason("the run is complete");
  const auto end = Of<EndAgent>(Told(release));
  ASSERT_EQ(end.size(), 1u);
  EXPECT_EQ(end[0].code, ExitCode::kDone);
}

TEST_F(AgentCoreTest, ShutdownTellsItsRanksFailuresAndASecondOneKills) {
  Run();
  const auto first = Handle(ShutdownAsked{"SIGTERM"});
  EXPECT_EQ(TellsOf(first, v1::AgentMessage::kFailed).size(), 2u);
  EXPECT_TRUE(Of<KillWorker>(first).empty());
  EXPECT_EQ(Of<KillWorker>(Handle(ShutdownAsked{"SIGTERM"})).size(), 2u);
  Ends(0, {.signal = SIGKILL});
  const auto end = Of<EndAgent>(Ends(1, {.signal = SIGKILL}));
  ASSERT_EQ(end.size(), 1u);
  EXPECT_EQ(end[0].code, ExitCode::kRetry);
}

TEST_F(AgentCoreTest, SlotOutsideTheNodeFailsItsRanksByName) {
  Register();
  v1::CoordinatorMessage start = Start(1);
  start.mutable_start()->mutable_assignments(1)->set_slot(2);
  const auto actions = Told(start);
  EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
  const auto failed = TellsOf(actions, v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 2u);
  EXPECT_THAT(failed[0].failed().error(), HasSubstr("slot 2"));
  EXPECT_EQ(TellsOf(Told(End(1)), v1::AgentMessage::kGone).size(), 1u);
}

TEST_F(AgentCoreTest, WorkerThatCannotBeStartedFailsItsRank) {
  Register();
  Told(Start(1));
  const auto failed = TellsOf(Handle(WorkerNotSpawned{1, absl::NotFoundError("no program")}),
                              v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].failed().rank(), 1);
  EXPECT_THAT(failed[0].failed().error(), HasSubstr("no program"));
}

TEST_F(AgentCoreTest, WorkerOfAnotherReleaseIsRefusedByName) {
  Register();
  Told(Start(1));
  sessions_[0] = ++last_session_;
  v1::WorkerMessage hello;
  hello.mutable_hello()->set_protocol_version(99);
  const auto actions = Says(0, hello);
  EXPECT_EQ(Of<KillWorker>(actions).size(), 1u);
  const auto failed = TellsOf(actions, v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_THAT(failed[0].failed().error(), HasSubstr("99"));
}

TEST_F(AgentCoreTest, RanksThatAskForTheSameWindowsAskOnce) {
  Run();
  v1::WorkerMessage request;
  *request.mutable_window_request()->mutable_key() = Key(1);
  request.mutable_window_request()->set_until_step(40);
  EXPECT_EQ(TellsOf(Says(0, request), v1::AgentMessage::kWindowRequest).size(), 1u);
  EXPECT_TRUE(TellsOf(Says(1, request), v1::AgentMessage::kWindowRequest).empty());
  now_.steady += 500ms;
  EXPECT_EQ(TellsOf(Says(1, request), v1::AgentMessage::kWindowRequest).size(), 1u)
      << "the first may have been lost";
  request.mutable_window_request()->set_until_step(20);
  EXPECT_TRUE(TellsOf(Says(1, request), v1::AgentMessage::kWindowRequest).empty()) << "granted";
}

TEST_F(AgentCoreTest, CommittedCheckpointIsNotToldAgain) {
  Run();
  v1::WorkerMessage part;
  *part.mutable_checkpoint_part()->mutable_key() = Key(1);
  part.mutable_checkpoint_part()->mutable_position()->set_step(15);
  EXPECT_EQ(TellsOf(Says(0, part), v1::AgentMessage::kCheckpointPart).size(), 1u);
  EXPECT_EQ(TellsOf(Register(), v1::AgentMessage::kCheckpointPart).size(), 1u);
  v1::CoordinatorMessage committed;
  *committed.mutable_checkpoint_committed()->mutable_key() = Key(1);
  committed.mutable_checkpoint_committed()->set_step(15);
  EXPECT_EQ(Of<TellWorker>(Told(committed)).size(), 2u);
  EXPECT_TRUE(TellsOf(Register(), v1::AgentMessage::kCheckpointPart).empty());
}

}  // namespace
}  // namespace paceline
