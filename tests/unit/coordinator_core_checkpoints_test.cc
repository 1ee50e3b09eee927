#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/manifest.h"
#include "coordinator/core/checkpoints.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::core {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

constexpr char kFolder10[] = "/runs/run/checkpoints/step-00000010-g1";

std::vector<std::int64_t> StepsOf(const Run& run) {
  std::vector<std::int64_t> steps;
  for (const Checkpoint& checkpoint : run.checkpoints) steps.push_back(checkpoint.position.step());
  return steps;
}

TEST(CheckpointsTest, TheManifestIsWrittenOnceAllPartsAreThere) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int rank = 0; rank < 3; ++rank) {
    cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
    EXPECT_TRUE(cluster.Last<WritePendingManifest>().empty());
  }
  cluster.Part(0, cluster.PartOf(0, 10, 4));  // a repeat
  EXPECT_TRUE(cluster.Last<WritePendingManifest>().empty());
  cluster.Part(1, cluster.PartOf(3, 10, 4));
  ASSERT_EQ(cluster.Last<WritePendingManifest>().size(), 1u);
  const WritePendingManifest write = cluster.Last<WritePendingManifest>()[0];
  EXPECT_EQ(write.folder, kFolder10);
  EXPECT_TRUE(cluster.Facts(v1::Fact::kCheckpointCommitted).empty());

  const Manifest& manifest = write.manifest;
  EXPECT_EQ(manifest.step, 10);
  EXPECT_EQ(manifest.sample, 40);
  EXPECT_EQ(manifest.tokens, 10 * 4 * 16);
  EXPECT_EQ(manifest.seed, 7u);
  EXPECT_EQ(manifest.parts.size(), 4u);
  EXPECT_EQ(manifest.run_file, cluster.TheRun().request.run_file());
}

TEST(CheckpointsTest, TheFactComesBeforeTheRenameAndTheAgentsAreTold) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Checkpoint(10);
  ASSERT_EQ(cluster.last.facts.size(), 2u);
  EXPECT_TRUE(cluster.last.facts[0].has_first_step_done()) << "no heartbeat has told of a step";
  const v1::CheckpointCommittedFact fact = cluster.last.facts[1].checkpoint_committed();
  EXPECT_EQ(fact.folder(), kFolder10);
  EXPECT_EQ(fact.bytes(), 400);
  EXPECT_EQ(fact.tokens(), 640);
  EXPECT_EQ(fact.manifest_digest().size(), 32u);
  ASSERT_EQ(cluster.Last<PublishManifest>().size(), 1u);
  EXPECT_EQ(cluster.Last<PublishManifest>()[0].folder, kFolder10);
  EXPECT_EQ(cluster.Sent(0, v1::CoordinatorMessage::kCheckpointCommitted).size(), 1u);
  EXPECT_EQ(cluster.Sent(1, v1::CoordinatorMessage::kCheckpointCommitted).size(), 1u);
  EXPECT_EQ(cluster.TheRun().windows.front().first_step(), 10);
}

TEST(CheckpointsTest, AManifestThatCouldNotBePublishedIsTriedAgain) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Checkpoint(10);
  cluster.Decide(PublishFailed{kFolder10});
  EXPECT_TRUE(cluster.Last<PublishManifest>().empty());
  cluster.Advance(seconds(1));
  cluster.Tick();
  EXPECT_TRUE(cluster.Last<PublishManifest>().empty());
  cluster.Advance(seconds(4));
  cluster.Tick();
  ASSERT_EQ(cluster.Last<PublishManifest>().size(), 1u);
  EXPECT_EQ(cluster.Last<PublishManifest>()[0].folder, kFolder10);
  // Once: whoever fails again says so again. Nor where it stands no more.
  cluster.Checkpoint(20);
  cluster.Decide(PublishFailed{kFolder10});
  cluster.Checkpoint(30);
  cluster.Advance(seconds(5));
  cluster.Tick();
  EXPECT_TRUE(cluster.Last<PublishManifest>().empty());
}

TEST(CheckpointsTest, KeepRetiresTheOldest) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Checkpoint(10);
  cluster.Checkpoint(20);
  EXPECT_TRUE(cluster.Last<DeleteCheckpoint>().empty());
  cluster.Checkpoint(30);
  ASSERT_EQ(cluster.Last<DeleteCheckpoint>().size(), 1u);
  EXPECT_EQ(cluster.Last<DeleteCheckpoint>()[0].folder, kFolder10);
  EXPECT_THAT(StepsOf(cluster.TheRun()), ElementsAre(20, 30));
}

TEST(CheckpointsTest, AFailedPartDiscardsItAndTrainingGoesOn) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Checkpoint(10);
  cluster.Part(0, cluster.PartOf(0, 20, 4));
  v1::AgentMessage message;
  *message.mutable_checkpoint_failed()->mutable_key() = cluster.Key();
  message.mutable_checkpoint_failed()->set_rank(2);
  message.mutable_checkpoint_failed()->set_step(20);
  message.mutable_checkpoint_failed()->set_error("no space left on device");
  cluster.Say(1, message);
  ASSERT_EQ(cluster.Facts(v1::Fact::kCheckpointDiscarded).size(), 1u);
  EXPECT_EQ(cluster.Facts(v1::Fact::kCheckpointDiscarded)[0].checkpoint_discarded().reason(),
            "rank 2 on node-1: no space left on device");
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_RUNNING);
  EXPECT_EQ(cluster.Status().checkpoint_step(), 10);
  // The parts that still come change nothing.
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 20, 4));
  EXPECT_TRUE(cluster.Last<WritePendingManifest>().empty());
  cluster.Checkpoint(30);
  EXPECT_EQ(cluster.Status().checkpoint_step(), 30);
}

// Parts of step `step` of ranks in one data-parallel group, with these digests.
void ExpectCorrupt(const std::vector<std::string>& digests, v1::FailureCause cause,
                   const std::string& blamed) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Checkpoint(10);
  cluster.Progress(0, 0, 21);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(cluster.Status().generation(), 1u);
    v1::CheckpointPart part = cluster.PartOf(rank, 20, 4);
    part.set_replica_digest(digests[static_cast<std::size_t>(rank)]);
    cluster.Part(rank / 2, part);
  }
  EXPECT_TRUE(cluster.Last<WritePendingManifest>().empty());
  EXPECT_EQ(cluster.Status().failure().cause(), cause);
  EXPECT_THAT(cluster.Status().failure().error(), HasSubstr("step 20"));
  EXPECT_THAT(cluster.Status().reason(), HasSubstr(blamed));
  // What is in memory may be mixed with it.
  cluster.Gone(0, 1, {{0, 21}, {1, 21}});
  cluster.Gone(1, 1, {{2, 21}, {3, 21}});
  ASSERT_EQ(cluster.Status().generation(), 2u);
  EXPECT_FALSE(cluster.TheRun().plan.live());
  EXPECT_EQ(cluster.TheRun().plan.start_step(), 10);
}

TEST(CheckpointsTest, ARankWhoseStateIsNotThatOfItsReplicasIsNamed) {
  ExpectCorrupt({"a", "a", "b", "a"}, v1::FAILURE_CAUSE_CORRUPT_STATE,
                "rank 2 on node-1 failed: its weights or optimizer state of step 20 are not those "
                "of the other 3 ranks");
  ExpectCorrupt({"b", "a", "a", "a"}, v1::FAILURE_CAUSE_CORRUPT_STATE, "rank 0 on node-0 failed");
}

TEST(CheckpointsTest, WithoutAMajorityNobodyIsToBlame) {
  ExpectCorrupt(
      {"a", "b", "b", "a"}, v1::FAILURE_CAUSE_REPLICAS_DIFFER,
      "of the 4 ranks that should hold the weights and optimizer state of rank 0 at step 20 not "
      "all do");
}

TEST(CheckpointsTest, RanksWithOtherSharesOfTheModelAreNotCompared) {
  v1::Layout layout;
  layout.set_pipeline(2);
  layout.set_data(2);
  layout.set_expert(1);
  CheckpointInFlight checkpoint;
  for (const auto& [rank, digest] : {std::pair(0, "a"), {1, "b"}, {2, "a"}, {3, "b"}}) {
    checkpoint.parts[rank].set_replica_digest(digest);
  }
  EXPECT_FALSE(FindDisagreement(checkpoint, layout).has_value());
  checkpoint.parts[3].set_replica_digest("c");
  ASSERT_TRUE(FindDisagreement(checkpoint, layout).has_value());
  EXPECT_EQ(FindDisagreement(checkpoint, layout)->cause, v1::FAILURE_CAUSE_REPLICAS_DIFFER);
  checkpoint.parts[3].clear_replica_digest();  // it tells none
  EXPECT_FALSE(FindDisagreement(checkpoint, layout).has_value());
}

TEST(CheckpointsTest, AManifestThatCannotBeWrittenDiscardsIt) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
  cluster.ManifestDone(10, absl::ResourceExhaustedError("disk full"));
  EXPECT_THAT(cluster.Facts(v1::Fact::kCheckpointDiscarded)[0].checkpoint_discarded().reason(),
              HasSubstr("disk full"));
  EXPECT_EQ(cluster.Last<DeleteCheckpoint>().size(), 1u);
  EXPECT_EQ(cluster.Status().checkpoint_step(), 0);
}

TEST(CheckpointsTest, OneManifestIsWrittenAtATime) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 20, 4));
  EXPECT_TRUE(cluster.Last<WritePendingManifest>().empty());
  cluster.ManifestDone(10);
  ASSERT_EQ(cluster.Last<WritePendingManifest>().size(), 1u);
  EXPECT_EQ(cluster.Last<WritePendingManifest>()[0].step, 20);
  // The digest in the manifest is the one the fact commits.
  const Manifest manifest = cluster.Last<WritePendingManifest>()[0].manifest;
  cluster.ManifestDone(20);
  EXPECT_EQ(manifest.ledger_digest, cluster.TheRun().ledger_digest);
}

TEST(CheckpointsTest, AnIncompleteOneThatIsOvertakenIsDiscarded) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Part(0, cluster.PartOf(0, 10, 4));
  cluster.Checkpoint(20);
  EXPECT_THAT(cluster.Facts(v1::Fact::kCheckpointDiscarded)[0].checkpoint_discarded().reason(),
              HasSubstr("step 20 was committed before it"));
  EXPECT_THAT(StepsOf(cluster.TheRun()), ElementsAre(20));
}

TEST(CheckpointsTest, ManyInFlightAreBounded) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int i = 1; i <= 9; ++i) cluster.Part(0, cluster.PartOf(0, 10 * i, 4));
  EXPECT_EQ(cluster.Facts(v1::Fact::kCheckpointDiscarded).size(), 5u);
}

TEST(CheckpointsTest, ALatePartNamesItsRank) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int rank : {0, 1, 3}) cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
  cluster.Run(seconds(601), {0, 1});
  EXPECT_EQ(cluster.Facts(v1::Fact::kCheckpointDiscarded)[0].checkpoint_discarded().reason(),
            "rank 2 on node-1 did not write its part within 600 s");
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_RUNNING);
}

TEST(CheckpointsTest, PartsThatContradictTheRunDiscardItByName) {
  const auto reason_of = [](const std::function<void(v1::CheckpointPart*)>& spoil) {
    Cluster cluster;
    cluster.StartFourRanks();
    v1::CheckpointPart part = cluster.PartOf(1, 10, 4);
    spoil(&part);
    cluster.Part(0, part);
    const auto facts = cluster.Facts(v1::Fact::kCheckpointDiscarded);
    return facts.empty() ? std::string("taken") : facts[0].checkpoint_discarded().reason();
  };
  EXPECT_THAT(reason_of([](auto* part) { part->mutable_position()->set_sample(39); }),
              HasSubstr("rank 1 on node-0: it has consumed 39 samples"));
  EXPECT_THAT(reason_of([](auto* part) { part->mutable_position()->set_seed(8); }),
              HasSubstr("its seed is 8"));
  EXPECT_THAT(reason_of([](auto* part) { part->mutable_position()->set_corpus_digest("x"); }),
              HasSubstr("corpus"));
  EXPECT_THAT(reason_of([](auto* part) { part->set_file("../other/rank-1.safetensors"); }),
              HasSubstr("without a folder"));
  EXPECT_THAT(reason_of([](auto* part) { part->set_bytes(-1); }), HasSubstr("-1 bytes"));
  EXPECT_EQ(reason_of([](auto*) {}), "taken");
}

TEST(CheckpointsTest, AStepThatWasNeverGrantedDoesNotCommit) {
  Cluster cluster;
  cluster.StartFourRanks(100);
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 101, 4));
  EXPECT_TRUE(cluster.Facts(v1::Fact::kCheckpointCommitted).empty());
}

TEST(CheckpointsTest, AfterACrashTheManifestIsPublishedAgain) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Checkpoint(10);
  cluster.Checkpoint(20);
  cluster.Checkpoint(30);
  cluster.Restart();
  ASSERT_EQ(cluster.Last<PublishManifest>().size(), 2u);
  EXPECT_EQ(cluster.Last<PublishManifest>()[1].folder, "/runs/run/checkpoints/step-00000030-g1");
  ASSERT_EQ(cluster.Last<DeleteCheckpoint>().size(), 1u);
  EXPECT_EQ(cluster.Last<DeleteCheckpoint>()[0].folder, kFolder10);
}

TEST(CheckpointsTest, PartsSaidAgainAfterACrashCommitIt) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
  cluster.Restart();
  cluster.ManifestDone(10);  // of the coordinator before
  EXPECT_TRUE(cluster.last.facts.empty());
  cluster.Register(0, 1, 2, "run");
  cluster.Register(1, 1, 2, "run");
  cluster.Checkpoint(10);
  EXPECT_EQ(cluster.Status().checkpoint_step(), 10);
  // An agent that did not hear of it says it again, and is answered.
  cluster.Part(1, cluster.PartOf(3, 10, 4));
  EXPECT_EQ(cluster.Sent(1, v1::CoordinatorMessage::kCheckpointCommitted).size(), 1u);
  EXPECT_TRUE(cluster.last.facts.empty());
}

// A deletion that waits behind a slow disk must not meet the step that is trained again.
TEST(CheckpointsTest, TheSameStepOfTwoGenerationsHasTwoFolders) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Part(0, cluster.PartOf(0, 10, 4));
  v1::RankFailed failed;
  *failed.mutable_key() = cluster.Key();
  failed.set_rank(3);
  failed.set_signal(9);
  cluster.Fail(1, failed);
  ASSERT_EQ(cluster.Last<DeleteCheckpoint>().size(), 1u);
  EXPECT_EQ(cluster.Last<DeleteCheckpoint>()[0].folder, kFolder10);
  EXPECT_FALSE(cluster.Last<DeleteCheckpoint>()[0].committed);
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  cluster.Register(0, 2, 2, "run");
  cluster.Register(1, 2, 2, "run");
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
  ASSERT_EQ(cluster.Last<WritePendingManifest>().size(), 1u);
  EXPECT_EQ(cluster.Last<WritePendingManifest>()[0].folder,
            "/runs/run/checkpoints/step-00000010-g2");
}

TEST(CheckpointsTest, OnlyWhatWasCommittedIsDeletedWithItsManifest) {
  Cluster cluster;
  cluster.StartFourRanks(100, "interval_steps = 10\nkeep = 1");
  cluster.Checkpoint(10);
  cluster.Part(0, cluster.PartOf(0, 20, 4));
  cluster.Checkpoint(30);
  // Step 20 was overtaken, step 10 is retired; and a restart says both again.
  for (const bool restarted : {false, true}) {
    if (restarted) cluster.Restart();
    std::map<std::string, bool> committed;
    for (const DeleteCheckpoint& remove : cluster.Last<DeleteCheckpoint>()) {
      committed[remove.folder] = remove.committed;
    }
    EXPECT_THAT(committed, ElementsAre(Pair(kFolder10, true),
                                       Pair("/runs/run/checkpoints/step-00000020-g1", false)));
  }
}

TEST(CheckpointsTest, WhatACrashLeftIsSweptWhenTheCoordinatorOpensAndWhenARunIsTakenUp) {
  Cluster cluster;
  cluster.StartFourRanks();
  cluster.Checkpoint(10);
  cluster.Restart();
  ASSERT_EQ(cluster.Last<SweepCheckpoints>().size(), 1u);
  SweepCheckpoints sweep = cluster.Last<SweepCheckpoints>()[0];
  EXPECT_EQ(sweep.dir, "/runs/run/checkpoints");
  EXPECT_EQ(sweep.last_generation, 0u) << "the open generation's ranks may be writing";
  EXPECT_THAT(sweep.known, ElementsAre(kFolder10));

  cluster.Register(0, 1, 2, "run");
  v1::RankFailed failed;
  *failed.mutable_key() = cluster.Key();
  failed.set_rank(0);
  failed.set_signal(9);
  cluster.Fail(0, failed);
  v1::SubmitRunRequest resume = SubmissionOf("resume", RunFileText(2, 2, 100));
  resume.set_resume(true);
  cluster.Submit(resume);
  ASSERT_EQ(cluster.Last<SweepCheckpoints>().size(), 1u);
  EXPECT_EQ(cluster.Last<SweepCheckpoints>()[0].last_generation, 1u);
}

// It may have died before it told of the part that it had begun.
TEST(CheckpointsTest, WhatADeadRankLeftIsSweptAfterTheRecoveryAndWhenTheRunEnds) {
  Cluster cluster;
  cluster.StartFourRanks(20);
  cluster.Checkpoint(10);
  v1::RankFailed failed;
  *failed.mutable_key() = cluster.Key();
  failed.set_rank(0);
  failed.set_signal(9);
  cluster.Fail(0, failed);
  cluster.Gone(0, 1);
  cluster.Gone(1, 1);
  EXPECT_TRUE(cluster.Last<SweepCheckpoints>().empty()) << "there is a plan, and no step yet";
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
  cluster.Checkpoint(20);
  ASSERT_EQ(cluster.Last<SweepCheckpoints>().size(), 1u);
  EXPECT_EQ(cluster.Last<SweepCheckpoints>()[0].last_generation, 1u);
  EXPECT_THAT(cluster.Last<SweepCheckpoints>()[0].known, ElementsAre(kFolder10));

  for (int rank = 0; rank < 4; ++rank) cluster.Finish(rank / 2, rank, 20);
  cluster.Progress(0, 0, 20);
  ASSERT_EQ(cluster.Status().state(), v1::RUN_STATE_COMPLETED);
  ASSERT_EQ(cluster.Last<SweepCheckpoints>().size(), 1u);
  EXPECT_EQ(cluster.Last<SweepCheckpoints>()[0].last_generation, 2u);
}

TEST(CheckpointsTest, APartThatIsNotThereDiscardsItAndTrainingGoesOn) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
  cluster.ManifestDone(10, absl::DataLossError("rank-00001.safetensors is not there"));
  EXPECT_EQ(cluster.Facts(v1::Fact::kCheckpointDiscarded)[0].checkpoint_discarded().reason(),
            "it could not be committed: rank-00001.safetensors is not there");
  EXPECT_EQ(cluster.Status().state(), v1::RUN_STATE_RUNNING);
}

TEST(CheckpointsTest, TheRunFilesFolderMayBeAbsolute) {
  Cluster cluster;
  cluster.StartFourRanks(100, "dir = \"/big/disk\"\ninterval_steps = 10");
  cluster.Checkpoint(10);
  EXPECT_EQ(cluster.Status().checkpoint(), "/big/disk/step-00000010-g1");
}

}  // namespace
}  // namespace paceline::core
