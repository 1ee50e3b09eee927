#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/core/runs.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;
using Kind = v1::CoordinatorMessage;

void FinishAll(Cluster& cluster, std::int64_t step, bool stopped = false) {
  cluster.Checkpoint(step);
  for (int rank = 0; rank < 4; ++rank) cluster.Finish(rank / 2, rank, step, stopped);
  cluster.Progress(0, 0, step);
}

TEST(RunStatesTest, EveryEndLeadsThroughWaiting) {
  EXPECT_TRUE(MayFollow(v1::RUN_STATE_WAITING, v1::RUN_STATE_STARTING));
  EXPECT_TRUE(MayFollow(v1::RUN_STATE_STARTING, v1::RUN_STATE_STOPPING));
  EXPECT_TRUE(MayFollow(v1::RUN_STATE_STOPPING, v1::RUN_STATE_WAITING));
  EXPECT_TRUE(MayFollow(v1::RUN_STATE_FAILED, v1::RUN_STATE_WAITING));
  EXPECT_FALSE(MayFollow(v1::RUN_STATE_STARTING, v1::RUN_STATE_COMPLETED));
  EXPECT_FALSE(MayFollow(v1::RUN_STATE_COMPLETED, v1::RUN_STATE_STARTING));
  EXPECT_FALSE(MayFollow(v1::RUN_STATE_STOPPED, v1::RUN_STATE_FAILED));
}

TEST(RunsTest, ARunWaitsForItsNodesAndSaysSo) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  cluster.Register(0, 1, 2, "run");
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_EQ(cluster.Status().reason(),
            "waits for 4 slots (2 nodes of 2); 2 slots on 1 node are free; goes on with 2 ranks on "
            "1 node, fewer than the 4 on 2 asked for within 120 s");
  cluster.Register(1, 1, 2, "other");
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  cluster.Register(2, 1, 2);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STARTING);
}

TEST(RunsTest, StartGenerationCarriesRanksAndWindows) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 5000)));
  cluster.Register(0);
  cluster.Register(1);
  ASSERT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  const v1::StartGeneration start = cluster.Sent(1, Kind::kStart)[0].start();
  EXPECT_EQ(start.key().generation(), 1u);
  ASSERT_EQ(start.assignments_size(), 2);
  EXPECT_EQ(start.assignments(0).rank(), 2);
  EXPECT_EQ(start.assignments(0).slot(), 0);
  EXPECT_EQ(start.run_dir(), "/runs/run");
  EXPECT_EQ(start.corpus_digest(), "c0ffee");
  ASSERT_EQ(start.windows_size(), 2);
  EXPECT_EQ(start.windows(1).end_step(), 900);
  EXPECT_EQ(cluster.Facts(v1::Fact::kWindowGranted).size(), 2u);  // facts come first
}

TEST(RunsTest, PeersAreSentOnceTheLastRankIsReady) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Register(0);
  cluster.Register(1);
  for (int rank = 0; rank < 3; ++rank) cluster.Ready(rank / 2, rank);
  EXPECT_TRUE(cluster.Sent(0, Kind::kPeers).empty());
  cluster.Ready(1, 3);
  ASSERT_EQ(cluster.Sent(0, Kind::kPeers).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, Kind::kPeers)[0].peers().addresses(3), "address-3");
  cluster.Ready(1, 2);  // says it again after a reconnection
  EXPECT_EQ(cluster.Sent(1, Kind::kPeers).size(), 1u);
  EXPECT_TRUE(cluster.Sent(0, Kind::kPeers).empty());
}

TEST(RunsTest, ARunIsCompletedWhenAllRanksFinishedAndTheLastCheckpointStands) {
  Cluster cluster;
  cluster.StartFourRanks(40);
  cluster.Progress(0, 0, 1);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_RUNNING);
  for (int rank = 0; rank < 4; ++rank) cluster.Finish(rank / 2, rank, 40);
  cluster.Progress(0, 0, 40);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_RUNNING);  // its checkpoint is not settled
  cluster.Checkpoint(40);
  const v1::RunStatus status = cluster.Status();
  EXPECT_EQ(status.state(), v1::RUN_STATE_COMPLETED);
  EXPECT_EQ(status.tokens(), 40 * 4 * 16);
  EXPECT_EQ(status.step().step(), 40);
  EXPECT_EQ(status.lost_steps(), 0);
  EXPECT_EQ(status.ranks_size(), 4);
  EXPECT_EQ(cluster.Last<WriteSummary>().size(), 1u);
  EXPECT_EQ(cluster.Sent(0, Kind::kEnd).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, Kind::kRelease).size(), 1u);
}

TEST(RunsTest, TheLastRecordIsWaitedFor) {
  Cluster cluster;
  cluster.StartFourRanks(40);
  cluster.Checkpoint(40);
  for (int rank = 0; rank < 4; ++rank) cluster.Finish(rank / 2, rank, 40);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_RUNNING);
  cluster.Progress(0, 0, 40);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_COMPLETED);
  EXPECT_EQ(cluster.Status().step().loss(), 2.5);
}

TEST(RunsTest, ANodeLostAfterEverythingWasSafeStillCompletesTheRun) {
  Cluster cluster;
  cluster.StartFourRanks(40);
  cluster.Checkpoint(40);
  for (int rank = 0; rank < 4; ++rank) cluster.Finish(rank / 2, rank, 40);
  cluster.Run(seconds(10), {1});  // node 0, with rank 0, is silent
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_COMPLETED);
}

TEST(RunsTest, WithoutItsLastCheckpointARunFailsAndMayBeResumed) {
  Cluster cluster;
  cluster.StartFourRanks(40);
  cluster.Checkpoint(10);
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 40, 4));
  for (int rank = 0; rank < 4; ++rank) cluster.Finish(rank / 2, rank, 40);
  cluster.ManifestDone(40, absl::ResourceExhaustedError("disk full"));
  cluster.Progress(0, 0, 40);
  const v1::RunStatus status = cluster.Status();
  EXPECT_EQ(status.state(), v1::RUN_STATE_FAILED);
  EXPECT_TRUE(status.retryable());
  EXPECT_THAT(status.reason(), HasSubstr("disk full"));
  EXPECT_THAT(status.reason(), HasSubstr("resume` goes on from step 10"));
  EXPECT_EQ(status.lost_steps(), 30);
  EXPECT_EQ(status.tokens(), 10 * 4 * 16);
}

TEST(RunsTest, AStopBeforeAnyNodeEndsTheRunAtOnce) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Stop("not needed");
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STOPPED);
  EXPECT_EQ(cluster.Status().reason(), "not needed");
  cluster.Stop("not needed");
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  EXPECT_TRUE(cluster.last.facts.empty());
}

TEST(RunsTest, AStopAsksEveryNodeAndEndsWithACheckpoint) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Progress(0, 0, 17);
  cluster.Stop("lunch");
  EXPECT_EQ(cluster.Sent(0, Kind::kStop).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, Kind::kStop).size(), 1u);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STOPPING);
  FinishAll(cluster, 18, /*stopped=*/true);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_STOPPED);
  EXPECT_EQ(cluster.Status().reason(), "lunch");
  EXPECT_EQ(cluster.Status().checkpoint_step(), 18);
  EXPECT_EQ(cluster.Status().lost_steps(), 0);
  EXPECT_TRUE(cluster.Status().retryable());
}

// The reply to a stop was lost, and its repeat arrives after the run was taken up again.
TEST(RunsTest, ALateRepeatOfAStopDoesNotStopTheResumedRun) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Stop("pause");
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  cluster.Stop("pause");
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
}

TEST(RunsTest, StopOfAnUnknownRunIsNotFound) {
  Cluster cluster;
  cluster.Stop("why not");
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kNotFound);
}

TEST(RunsTest, ResumeGoesOnFromTheLastCommittedCheckpoint) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10\nkeep = 2\n[failure]\nmax_restarts = 0");
  cluster.Checkpoint(10);
  cluster.Progress(0, 0, 15);
  v1::RankFailed failed = FailureOf(cluster, 3, absl::StatusCode::kOk, "");
  failed.set_signal(9);
  failed.add_stderr_tail("last words");
  cluster.Fail(1, failed);
  const v1::RunStatus status = cluster.Status();
  EXPECT_EQ(status.state(), v1::RUN_STATE_FAILED);
  EXPECT_EQ(
      status.reason(),
      "rank 3 on node-1 was ended by SIGKILL ([failure] max_restarts = 0: it is not to go on by "
      "itself)");
  EXPECT_TRUE(status.retryable());
  EXPECT_EQ(status.failure().stderr_tail(0), "last words");
  EXPECT_EQ(status.lost_steps(), 5);
  EXPECT_EQ(status.lost_tokens(), 5 * 4 * 16);
  EXPECT_EQ(status.tokens(), 10 * 4 * 16);

  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  cluster.Register(0, 2, 2, "run");
  cluster.Register(1, 2, 2, "run");
  ASSERT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  const v1::StartGeneration start = cluster.Sent(1, Kind::kStart)[0].start();
  EXPECT_EQ(start.key().generation(), 2u);
  EXPECT_EQ(start.start_step(), 10);
  EXPECT_EQ(start.start_tokens(), 10 * 4 * 16);
  EXPECT_EQ(start.checkpoint(), "/runs/run/checkpoints/step-00000010-g1");
  EXPECT_EQ(start.windows(0).first_step(), 10);
  EXPECT_EQ(cluster.Status().recoveries(), 0);  // somebody asked for it
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
  FinishAll(cluster, 100);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_COMPLETED);
  EXPECT_EQ(cluster.Status().generation(), 2u);
}

TEST(RunsTest, ARepeatedSubmissionAnswersAsTheFirst) {
  Cluster cluster;
  const v1::SubmitRunRequest request = SubmissionOf("submit", RunFileText(2, 2, 100));
  cluster.Submit(request);
  cluster.Submit(request);
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].run_id, "run");
  EXPECT_TRUE(cluster.last.facts.empty());
  cluster.Submit(SubmissionOf("another", RunFileText(2, 2, 100)));
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kAlreadyExists);
}

TEST(RunsTest, AResumeOfARunThatWaitsTakesEffect) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(4, 2, 100)));
  cluster.Register(0, 1, 2, "run");
  cluster.Register(1, 1, 2, "run");
  ASSERT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  std::string changed = RunFileText(2, 2, 60);  // of the same global batch
  changed.replace(changed.find("global_batch_size = 4"), 21, "global_batch_size = 8");
  v1::SubmitRunRequest resume = SubmissionOf("resume", changed);
  resume.set_resume(true);
  cluster.Submit(resume);
  ASSERT_EQ(cluster.Last<AnswerCall>().size(), 1u);
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  EXPECT_EQ(cluster.Status().steps_total(), 60);
  ASSERT_EQ(cluster.Sent(0, Kind::kStart).size(), 1u) << "two nodes are enough now";
  EXPECT_THAT(cluster.Sent(0, Kind::kStart)[0].start().run_file(), HasSubstr("steps = 60"));

  resume = SubmissionOf("another", RunFileText(2, 2, 60));
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kAlreadyExists);
}

TEST(RunsTest, AResumeOfARunThatWaitsKeepsWhatDecidesTheSamples) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(4, 2, 100)));
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(cluster.last.facts.empty());
}

TEST(RunsTest, AResumeThatLeavesNothingToDoEndsAtOnce) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);
  cluster.Stop("pause");
  FinishAll(cluster, 20, true);
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 15));
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_COMPLETED);
  EXPECT_EQ(cluster.Status().reason(),
            "nothing was left to do: step 20 is committed, and [train] steps = 15");
}

TEST(RunsTest, BadSubmissionsNameTheirField) {
  Cluster cluster;
  const auto refusal = [&cluster](const v1::SubmitRunRequest& request) {
    cluster.Submit(request);
    EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(cluster.last.facts.empty());
    return std::string(cluster.Last<AnswerCall>()[0].status.message());
  };
  v1::SubmitRunRequest request = SubmissionOf("submit", RunFileText(2, 2, 100));
  request.set_run_id("../run");
  EXPECT_THAT(refusal(request), HasSubstr("run_id"));
  request = SubmissionOf("submit", RunFileText(2, 2, 100));
  request.set_run_dir("runs/run");
  EXPECT_THAT(refusal(request), HasSubstr("run_dir"));
  request = SubmissionOf("submit", "[train]\nsteps = 0\n");
  EXPECT_THAT(refusal(request), HasSubstr("steps"));
  request = SubmissionOf("submit", RunFileText(2, 2, 100) + "[layout]\nexpert = 2\n");
  EXPECT_THAT(refusal(request), HasSubstr("expert"));
}

TEST(RunsTest, AResumeThatWouldChangeTheOrderOfSamplesIsRefused) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Stop("later");
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(4, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_THAT(std::string(cluster.Last<AnswerCall>()[0].status.message()),
              HasSubstr("global_batch_size = 8: it was 4"));
  resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  resume.set_corpus_digest("beef");
  cluster.Submit(resume);
  EXPECT_THAT(std::string(cluster.Last<AnswerCall>()[0].status.message()), HasSubstr("corpus"));
}

TEST(RunsTest, ResumeOfAnUnknownRunIsNotFound) {
  Cluster cluster;
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kNotFound);
}

TEST(RunsTest, ResumeAfterEverythingDiedWaitsForTheLeasesAndThenGoesOn) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);
  cluster.Restart();  // and no agent lives any more
  v1::SubmitRunRequest resume = SubmissionOf("resume", "");
  resume.set_run_dir("");
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_TRUE(cluster.Last<AnswerCall>().empty());
  cluster.Run(std::chrono::milliseconds(7500), {});
  cluster.Advance(std::chrono::milliseconds(500));
  cluster.Tick();
  ASSERT_EQ(cluster.Last<AnswerCall>().size(), 1u);
  EXPECT_TRUE(cluster.Last<AnswerCall>()[0].status.ok());
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  cluster.Register(0, 2, 2, "run");
  cluster.Register(1, 2, 2, "run");
  ASSERT_EQ(cluster.Sent(0, Kind::kStart).size(), 1u);
  EXPECT_EQ(cluster.Sent(0, Kind::kStart)[0].start().start_step(), 10);
}

TEST(RunsTest, ResumeOfARunThatIsHeardOfIsRefused) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  EXPECT_EQ(cluster.Last<AnswerCall>()[0].status.code(), absl::StatusCode::kAlreadyExists);
}

TEST(RunsTest, ADamagedCheckpointIsLeftForTheOneBefore) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Checkpoint(10);
  cluster.Checkpoint(20);
  cluster.Stop("pause");
  FinishAll(cluster, 30, true);
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  cluster.Register(0, 2, 2, "run");
  cluster.Register(1, 2, 2, "run");
  v1::RankFailed failed = FailureOf(cluster, 0, absl::StatusCode::kDataLoss, "a digest is off");
  failed.set_damaged_checkpoint("/runs/run/checkpoints/step-00000030-g1");
  cluster.Fail(0, failed);
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_WAITING);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr("still ending generation 2"));
  cluster.Gone(0, 2);
  cluster.Gone(1, 2);
  const auto back = cluster.Facts(v1::Fact::kWindowsRolledBack);
  EXPECT_EQ(back.back().windows_rolled_back().window().first_step(), 20);
  EXPECT_EQ(back.back().windows_rolled_back().lost_steps(), 10);
  ASSERT_EQ(cluster.Sent(0, Kind::kStart).size(), 1u);
  EXPECT_EQ(cluster.Sent(0, Kind::kStart)[0].start().start_step(), 20);
  EXPECT_EQ(cluster.Status().recoveries(), 1);
}

TEST(RunsTest, CheckpointsThatTheUserFoundDamagedAreRolledBackBeforePlanning) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10\nkeep = 5");
  cluster.Checkpoint(10);
  cluster.Checkpoint(20);
  cluster.Stop("pause");
  FinishAll(cluster, 30, true);
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  for (const char* step : {"30", "20"}) {
    v1::DamagedCheckpoint& damaged = *resume.add_damaged_checkpoints();
    damaged.set_folder(absl::StrCat("/runs/run/checkpoints/step-000000", step, "-g1"));
    damaged.set_reason("rank-0.safetensors is truncated");
  }
  cluster.Submit(resume);
  EXPECT_EQ(cluster.Status().checkpoint_step(), 10);
  const auto back = cluster.Facts(v1::Fact::kWindowsRolledBack).back().windows_rolled_back();
  EXPECT_EQ(back.window().first_step(), 10);
  EXPECT_EQ(back.window().end_step(), 30);
  EXPECT_EQ(back.lost_steps(), 20);
  EXPECT_EQ(cluster.Status().tokens(), 10 * 4 * 16);
  EXPECT_EQ(cluster.Last<SetCheckpointAside>().size(), 2u);
}

// One rank's word: the folder is kept, and nobody begins anew behind the user's back.
TEST(RunsTest, TheLastCheckpointFoundDamagedIsKeptAndEndsTheRun) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Stop("pause");
  FinishAll(cluster, 30, true);
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  cluster.Register(0, 2, 2, "run");
  cluster.Register(1, 2, 2, "run");
  const std::string folder = "/runs/run/checkpoints/step-00000030-g1";
  v1::RankFailed failed = FailureOf(cluster, 0, absl::StatusCode::kDataLoss, "a digest is off");
  failed.set_damaged_checkpoint(folder);
  cluster.Fail(0, failed);
  ASSERT_EQ(cluster.Last<SetCheckpointAside>().size(), 1u);
  EXPECT_EQ(cluster.Last<SetCheckpointAside>()[0].folder, folder);
  EXPECT_TRUE(cluster.Last<DeleteCheckpoint>().empty());
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(cluster.Status().reason(), HasSubstr(folder + ".damaged"));
}

TEST(RunsTest, WhatNamesAnEndedGenerationChangesNothingAndIsFenced) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Register(0);
  cluster.Register(1);
  const v1::CheckpointPart part = cluster.PartOf(0, 10, 4);
  v1::RankFailed failed = FailureOf(cluster, 3, absl::StatusCode::kInvalidArgument, "no");
  cluster.Fail(1, failed);
  ASSERT_EQ(cluster.Status().state(), v1::RUN_STATE_FAILED);
  cluster.Gone(0, 1);
  const std::size_t facts = cluster.facts.size();
  cluster.Part(0, part);
  EXPECT_EQ(cluster.Sent(0, Kind::kEnd).size(), 1u);
  cluster.Fail(0, FailureOf(cluster, 0, absl::StatusCode::kInternal, "late"));
  cluster.ManifestDone(10);
  EXPECT_EQ(cluster.facts.size(), facts);
}

TEST(RunsTest, ANodeThatStillEndsAGenerationTakesNoOther) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  cluster.Register(0);
  cluster.Register(1);
  cluster.Fail(1, FailureOf(cluster, 3, absl::StatusCode::kInternal, "no"));
  v1::SubmitRunRequest next = SubmissionOf("next", RunFileText(2, 2, 100));
  next.set_run_id("next");
  next.set_run_dir("/runs/next");
  cluster.Submit(next);
  EXPECT_EQ(cluster.core().GetRun("next", cluster.now())->state(), v1::RUN_STATE_WAITING);
  cluster.Gone(0, 1);
  EXPECT_EQ(cluster.core().GetRun("next", cluster.now())->state(), v1::RUN_STATE_WAITING);
  cluster.Gone(1, 1);
  EXPECT_EQ(cluster.core().GetRun("next", cluster.now())->state(), v1::RUN_STATE_STARTING);
}

TEST(RunsTest, TwoRunsShareNoNode) {
  Cluster cluster;
  for (int node = 0; node < 4; ++node) cluster.Register(node);
  cluster.Submit(SubmissionOf("submit", RunFileText(2, 2, 100)));
  v1::SubmitRunRequest next = SubmissionOf("next", RunFileText(2, 2, 100));
  next.set_run_id("next");
  next.set_run_dir("/runs/next");
  cluster.Submit(next);
  const v1::RunStatus first = cluster.Status();
  const v1::RunStatus second = *cluster.core().GetRun("next", cluster.now());
  ASSERT_EQ(second.state(), v1::RUN_STATE_STARTING);
  for (const v1::NodeStatus& a : first.nodes()) {
    for (const v1::NodeStatus& b : second.nodes()) EXPECT_NE(a.node_id(), b.node_id());
  }
}

TEST(RunsTest, AReconnectedNodeIsToldAgainWhereItStands) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  cluster.Close(1);
  cluster.Stop("pause");
  cluster.Register(1, 1, 2, "run");
  EXPECT_EQ(cluster.Sent(1, Kind::kRegistered).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, Kind::kStart).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, Kind::kPeers).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, Kind::kStop).size(), 1u);
}

TEST(RunsTest, WindowsAreGrantedOnAsStepsAreTimed) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(1, 2, 100'000)));
  cluster.Register(0);
  EXPECT_EQ(cluster.TheRun().GrantedUntil(), 900);
  cluster.Progress(0, 0, 1, 0.1);
  EXPECT_GE(cluster.TheRun().GrantedUntil(), 9001);
  ASSERT_FALSE(cluster.Sent(0, Kind::kWindowGrant).empty());
  EXPECT_EQ(cluster.Sent(0, Kind::kWindowGrant)[0].window_grant().window().first_step(), 900);
}

TEST(RunsTest, AWindowRequestIsAnsweredAgainWithWhatWasGranted) {
  Cluster cluster;
  cluster.Submit(SubmissionOf("submit", RunFileText(1, 2, 100'000)));
  cluster.Register(0);
  v1::AgentMessage message;
  *message.mutable_window_request()->mutable_key() = cluster.Key();
  message.mutable_window_request()->set_until_step(500);
  cluster.Say(0, message);
  EXPECT_TRUE(cluster.last.facts.empty());
  ASSERT_EQ(cluster.Sent(0, Kind::kWindowGrant).size(), 2u);
  EXPECT_EQ(cluster.Sent(0, Kind::kWindowGrant)[1].window_grant().window().end_step(), 900);
  message.mutable_window_request()->set_until_step(1'000'000'000);
  cluster.Say(0, message);
  EXPECT_EQ(cluster.TheRun().GrantedUntil(), 100'000);
}

TEST(SubmitTest, NoTwoRunsHaveOneCheckpointFolder) {
  Cluster cluster;
  cluster.StartFourRanks();
  v1::SubmitRunRequest next = SubmissionOf("next", RunFileText(2, 2, 100));
  next.set_run_id("next");
  next.set_run_dir("/runs/next");
  std::string& text = *next.mutable_run_file();
  text.replace(text.find("[launch]"), 0, "dir = \"/runs/run/checkpoints\"\n");
  cluster.Submit(next);
  const absl::Status status = cluster.Last<AnswerCall>()[0].status;
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is that of run run"));
}

}  // namespace
}  // namespace paceline::core
