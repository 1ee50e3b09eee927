// The audit against histories that the real core decided, and against the same histories altered.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "launch/cli/lineage_audit.h"
#include "launch/cli/sample_audit.h"
#include "tests/unit/coordinator_core_cluster.h"

namespace paceline::cli {
namespace {

using core::Cluster;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Facts = std::vector<v1::Fact>;

// Two generations with a damaged checkpoint between them, and the run's end:
// 0 -> 10 -> 20 -> 30 (damaged, given up), and again 20 -> 35 -> 60.
Facts Story() {
  Cluster cluster;
  cluster.StartFourRanks(/*steps=*/60);
  cluster.Checkpoint(10);
  cluster.Checkpoint(20);
  cluster.Checkpoint(30);
  cluster.Progress(0, 0, 37);
  cluster.Fail(1, FailureOf(cluster, 3, absl::StatusCode::kInternal, "no more"));
  cluster.Run(std::chrono::seconds(30), {0, 1});
  cluster.Register(0, 2, 2, "run");
  cluster.Register(1, 2, 2, "run");
  v1::SubmitRunRequest again = core::SubmissionOf("again", core::RunFileText(2, 2, 60));
  again.set_resume(true);
  v1::DamagedCheckpoint& damaged = *again.add_damaged_checkpoints();
  damaged.set_folder("/runs/run/checkpoints/step-00000030-g1");
  damaged.set_reason("a byte is off");
  cluster.Submit(again);
  for (int rank = 0; rank < 4; ++rank) cluster.Ready(rank / 2, rank);
  cluster.Checkpoint(35);
  cluster.Checkpoint(60);
  for (int rank = 0; rank < 4; ++rank) cluster.Finish(rank / 2, rank, 60);
  cluster.Progress(0, 0, 60);
  return cluster.facts;
}

absl::StatusOr<Lineage> Audit(const Facts& facts) {
  LineageAudit audit("run");
  for (const v1::Fact& fact : facts) RETURN_IF_ERROR(audit.Take(fact));
  return audit.Finish();
}

// Altered by somebody who knows that indices have no gap.
Facts Renumbered(Facts facts) {
  std::uint64_t index = 0;
  for (v1::Fact& fact : facts) fact.set_index(++index);
  return facts;
}

std::size_t Place(const Facts& facts, v1::Fact::BodyCase kind, int which = 0) {
  for (std::size_t i = 0; i < facts.size(); ++i) {
    if (facts[i].body_case() == kind && which-- == 0) return i;
  }
  ADD_FAILURE() << "no such fact";
  return 0;
}

std::string Why(const Facts& facts) {
  const auto lineage = Audit(facts);
  EXPECT_EQ(lineage.status().code(), absl::StatusCode::kDataLoss) << lineage.status();
  return std::string(lineage.status().message());
}

TEST(LineageAuditTest, WhatTheCoreDecidedIsProven) {
  const auto lineage = Audit(Story());
  ASSERT_TRUE(lineage.ok()) << lineage.status();
  EXPECT_EQ(lineage->committed_step, 60);
  EXPECT_EQ(lineage->proven_from, 0);
  EXPECT_EQ(lineage->granted_until, 60);
  EXPECT_THAT(lineage->generations, ElementsAre(1, 2));
  std::vector<std::int64_t> ends;
  for (const CommittedRange& range : lineage->ranges) ends.push_back(range.end_step);
  EXPECT_THAT(ends, ElementsAre(10, 20, 35, 60));
  // 7 steps of the failed generation, and the 10 of the damaged checkpoint.
  EXPECT_EQ(lineage->rolled_back_steps, 17);
  EXPECT_EQ(lineage->rolled_back_tokens, 17 * 4 * 16);
}

TEST(LineageAuditTest, EveryPrefixOfTheFactsIsProvenAsFarAsItGoes) {
  const Facts facts = Story();
  const std::size_t submitted = Place(facts, v1::Fact::kRunSubmitted);
  for (std::size_t count = submitted + 1; count <= facts.size(); ++count) {
    const auto lineage = Audit(Facts(facts.begin(), facts.begin() + static_cast<int>(count)));
    ASSERT_TRUE(lineage.ok()) << count << ": " << lineage.status();
  }
}

// Charges and nodes decide nothing about samples; the rest is missed, but for the stop of a run
// that nobody asked to stop.
TEST(LineageAuditTest, FactThatIsMissingOrStandsTwiceIsFound) {
  const Facts facts = Story();
  int tried = 0;
  for (std::size_t i = 0; i < facts.size(); ++i) {
    const auto kind = facts[i].body_case();
    const bool decides =
        kind == v1::Fact::kGenerationStarted || kind == v1::Fact::kGenerationEnded ||
        kind == v1::Fact::kWindowGranted || kind == v1::Fact::kWindowsRolledBack ||
        kind == v1::Fact::kCheckpointCommitted ||
        (kind == v1::Fact::kCheckpointDiscarded && facts[i].checkpoint_discarded().committed());
    Facts without = facts;
    without.erase(without.begin() + static_cast<int>(i));
    if (i > 0 && i + 1 < facts.size()) {
      EXPECT_FALSE(Audit(without).ok()) << i << " is gone, and the indices tell";
    }
    if (!decides) continue;
    ++tried;
    // A retired checkpoint that is not given up changes no sample.
    const bool retired = kind == v1::Fact::kCheckpointDiscarded &&
                         facts[i].checkpoint_discarded().reason().starts_with("retired");
    if (!retired) {
      EXPECT_FALSE(Audit(Renumbered(without)).ok()) << facts[i].ShortDebugString();
    }
    Facts twice = facts;
    twice.insert(twice.begin() + static_cast<int>(i), facts[i]);
    EXPECT_FALSE(Audit(Renumbered(twice)).ok()) << facts[i].ShortDebugString();
  }
  EXPECT_GT(tried, 12);
}

TEST(LineageAuditTest, WindowGrantedTwiceIsNamed) {
  Facts facts = Story();
  const std::size_t at = Place(facts, v1::Fact::kWindowGranted);
  v1::Fact again = facts[at];
  again.mutable_window_granted()->mutable_window()->set_first_step(40);
  again.mutable_window_granted()->mutable_window()->set_end_step(80);
  facts.insert(facts.begin() + static_cast<int>(at) + 1, again);
  EXPECT_THAT(Why(Renumbered(facts)), HasSubstr("steps [40, 80) are granted, though steps up to 60 "
                                                "are granted or committed already"));
}

TEST(LineageAuditTest, GapBetweenWindowsIsNamed) {
  Facts facts = Story();
  facts[Place(facts, v1::Fact::kWindowGranted)]
      .mutable_window_granted()
      ->mutable_window()
      ->set_first_step(1);
  EXPECT_THAT(Why(facts), HasSubstr("steps [1, 60) are granted after step 0"));
}

TEST(LineageAuditTest, LedgerDigestThatDoesNotFollowIsNamed) {
  Facts facts = Story();
  const std::size_t at = Place(facts, v1::Fact::kCheckpointCommitted, 1);
  std::string digest = facts[at].checkpoint_committed().ledger_digest();
  digest[0] = digest[0] == '0' ? '1' : '0';
  facts[at].mutable_checkpoint_committed()->set_ledger_digest(digest);
  EXPECT_THAT(Why(facts), HasSubstr("the checkpoint of step 20: its ledger digest is " + digest));
}

TEST(LineageAuditTest, AlteredFieldsAreFound) {
  const Facts facts = Story();
  const std::vector<std::pair<v1::Fact::BodyCase, std::function<void(v1::Fact&)>>> alterations = {
      {v1::Fact::kCheckpointCommitted,
       [](v1::Fact& f) { f.mutable_checkpoint_committed()->mutable_position()->set_sample(41); }},
      {v1::Fact::kCheckpointCommitted,
       [](v1::Fact& f) { f.mutable_checkpoint_committed()->mutable_position()->set_step(11); }},
      {v1::Fact::kCheckpointCommitted,
       [](v1::Fact& f) { f.mutable_checkpoint_committed()->mutable_position()->set_seed(8); }},
      {v1::Fact::kCheckpointCommitted,
       [](v1::Fact& f) {
         f.mutable_checkpoint_committed()->mutable_position()->set_corpus_digest("other");
       }},
      {v1::Fact::kCheckpointCommitted,
       [](v1::Fact& f) { f.mutable_checkpoint_committed()->set_tokens(1); }},
      {v1::Fact::kCheckpointCommitted,
       [](v1::Fact& f) { f.mutable_checkpoint_committed()->mutable_key()->set_generation(2); }},
      {v1::Fact::kGenerationStarted,
       [](v1::Fact& f) { f.mutable_generation_started()->set_start_step(5); }},
      {v1::Fact::kGenerationStarted,
       [](v1::Fact& f) { f.mutable_generation_started()->set_checkpoint("/elsewhere"); }},
      {v1::Fact::kGenerationEnded,
       [](v1::Fact& f) { f.mutable_generation_ended()->set_last_step(61); }},
      {v1::Fact::kWindowsRolledBack,
       [](v1::Fact& f) { f.mutable_windows_rolled_back()->set_lost_tokens(1); }},
      {v1::Fact::kWindowsRolledBack,
       [](v1::Fact& f) { f.mutable_windows_rolled_back()->mutable_window()->set_first_step(29); }},
      {v1::Fact::kRunEnded, [](v1::Fact& f) { f.mutable_run_ended()->set_tokens(1); }},
      {v1::Fact::kWindowGranted, [](v1::Fact& f) { f.set_at_ms(1); }},
  };
  for (std::size_t i = 0; i < alterations.size(); ++i) {
    Facts altered = facts;
    v1::Fact& fact = altered[Place(altered, alterations[i].first)];
    alterations[i].second(fact);
    EXPECT_THAT(Why(altered), HasSubstr(absl::StrCat("fact ", fact.index()))) << i;
  }
}

TEST(LineageAuditTest, ResumeWithAnotherOrderOfSamplesIsFound) {
  Facts facts = Story();
  v1::Fact& again = facts[Place(facts, v1::Fact::kRunSubmitted, 1)];
  again.mutable_run_submitted()->mutable_request()->set_corpus_digest("other");
  EXPECT_THAT(Why(facts), HasSubstr("the corpus digest is other, and must be c0ffee"));
}

TEST(LineageAuditTest, OtherRunsAreNotItsMatter) {
  Facts facts = Story();
  v1::Fact other;
  other.mutable_window_granted()->mutable_key()->set_run_id("another");
  other.set_at_ms(facts[0].at_ms());
  facts.insert(facts.begin() + 1, other);
  EXPECT_TRUE(Audit(Renumbered(facts)).ok());
  EXPECT_TRUE(absl::IsNotFound(LineageAudit("nobody").Finish().status()));
}

v1::StateSnapshot SnapshotAfter(const Facts& facts, std::size_t count) {
  core::State state;
  for (std::size_t i = 0; i < count; ++i) EXPECT_TRUE(state.Evolve(facts[i]).ok());
  return state.ToSnapshot();
}

TEST(LineageAuditTest, SnapshotsOnTheWayAgree) {
  const Facts facts = Story();
  LineageAudit audit("run");
  for (std::size_t i = 0; i < facts.size(); ++i) {
    ASSERT_TRUE(audit.Take(facts[i]).ok());
    const absl::Status compared = audit.Take(SnapshotAfter(facts, i + 1));
    ASSERT_TRUE(compared.ok()) << i << ": " << compared;
  }
}

// Wherever the history begins, a snapshot there vouches for what came before, and the rest is
// proven.
TEST(LineageAuditTest, HistoryThatBeginsAtASnapshotIsProvenFromThere) {
  const Facts facts = Story();
  for (std::size_t begin = Place(facts, v1::Fact::kRunSubmitted) + 1; begin < facts.size();
       ++begin) {
    LineageAudit audit("run");
    const v1::StateSnapshot snapshot = SnapshotAfter(facts, begin);
    ASSERT_TRUE(audit.Take(snapshot).ok()) << begin;
    for (std::size_t i = begin; i < facts.size(); ++i) ASSERT_TRUE(audit.Take(facts[i]).ok()) << i;
    const auto lineage = audit.Finish();
    ASSERT_TRUE(lineage.ok()) << lineage.status();
    EXPECT_EQ(lineage->committed_step, 60);
    EXPECT_EQ(lineage->snapshot_index, begin);
    EXPECT_EQ(lineage->rolled_back_steps, 17);
    std::int64_t vouched = 0;
    const v1::SnapshotRun& run = snapshot.runs(0);
    for (const v1::SnapshotCheckpoint& checkpoint : run.checkpoints()) {
      // That of step 30 turns out to be damaged: the lineage goes on from the one before.
      const std::int64_t step = checkpoint.position().step();
      if (step != 30) vouched = step;
    }
    EXPECT_EQ(lineage->proven_from, vouched) << begin;
  }
}

TEST(LineageAuditTest, HistoryThatBeginsWithoutASnapshotProvesNothing) {
  const Facts facts = Story();
  const std::size_t begin = Place(facts, v1::Fact::kCheckpointCommitted);
  const Facts rest(facts.begin() + static_cast<int>(begin), facts.end());
  EXPECT_THAT(Why(rest), HasSubstr("nothing can be proven"));
}

TEST(LineageAuditTest, SnapshotThatSaysOtherwiseIsFound) {
  const Facts facts = Story();
  const std::size_t count = Place(facts, v1::Fact::kCheckpointCommitted, 2) + 1;
  for (const auto& alter : std::vector<std::function<void(v1::SnapshotRun&)>>{
           [](v1::SnapshotRun& run) { run.set_ledger_digest("00"); },
           [](v1::SnapshotRun& run) { run.set_generation(9); },
           [](v1::SnapshotRun& run) { run.mutable_windows(0)->set_end_step(59); },
           [](v1::SnapshotRun& run) { run.mutable_checkpoints()->RemoveLast(); },
           [](v1::SnapshotRun& run) {
             run.mutable_checkpoints(0)->mutable_position()->set_step(9);
           }}) {
    v1::StateSnapshot snapshot = SnapshotAfter(facts, count);
    alter(*snapshot.mutable_runs(0));
    LineageAudit audit("run");
    for (std::size_t i = 0; i < count; ++i) ASSERT_TRUE(audit.Take(facts[i]).ok());
    const absl::Status compared = audit.Take(snapshot);
    EXPECT_EQ(compared.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(compared.message()), HasSubstr("the snapshot after fact"));
  }
}

TEST(ManifestAuditTest, EveryFieldThatPlacesItIsCompared) {
  Cluster cluster;
  cluster.StartFourRanks();
  for (int rank = 0; rank < 4; ++rank) cluster.Part(rank / 2, cluster.PartOf(rank, 10, 4));
  const Manifest manifest = cluster.Last<core::WritePendingManifest>()[0].manifest;
  cluster.ManifestDone(10);
  const auto lineage = Audit(cluster.facts);
  ASSERT_TRUE(lineage.ok()) << lineage.status();
  const CommittedRange& range = lineage->ranges.back();
  ASSERT_TRUE(CheckManifest(*lineage, range, manifest).ok())
      << CheckManifest(*lineage, range, manifest);
  const std::vector<std::pair<std::string, std::function<void(Manifest&)>>> alterations = {
      {"run_id", [](Manifest& m) { m.run_id = "another"; }},
      {"generation", [](Manifest& m) { ++m.generation; }},
      {"step", [](Manifest& m) { ++m.step; }},
      {"sample", [](Manifest& m) { ++m.sample; }},
      {"tokens", [](Manifest& m) { ++m.tokens; }},
      {"seed", [](Manifest& m) { ++m.seed; }},
      {"corpus_digest", [](Manifest& m) { m.corpus_digest = "other"; }},
      {"ledger_digest", [](Manifest& m) { m.ledger_digest = "other"; }},
      {"digest", [](Manifest& m) { m.run_file += "\n"; }},
  };
  for (const auto& [field, alter] : alterations) {
    Manifest altered = manifest;
    alter(altered);
    const absl::Status status = CheckManifest(*lineage, range, altered);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << field;
    EXPECT_TRUE(status.message().substr(0, field.size()) == field) << status;
  }
}

// One source of `samples`, as a run draws it.
std::function<DrawnSample(std::int64_t)> OneSource(std::int64_t samples) {
  return [samples](std::int64_t draw) {
    return DrawnSample{0, draw / samples,
                       PermutedSample(7, draw / samples, draw % samples, samples)};
  };
}

TEST(ProveDrawsTest, PermutationDrawsEachSampleOnceAnEpoch) {
  const auto found = ProveDraws(OneSource(1000), {1000}, 0, 2345);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->at(0).whole_epochs, 2);
  EXPECT_EQ(found->at(0).in_last, 345);
  EXPECT_EQ(ProveDraws(OneSource(1000), {1000}, 0, 2000)->at(0).whole_epochs, 2);
  EXPECT_EQ(ProveDraws(OneSource(1000), {1000}, 0, 2000)->at(0).in_last, 0);
  EXPECT_EQ(ProveDraws(OneSource(1000), {1000}, 0, 0)->at(0).whole_epochs, 0);
}

TEST(ProveDrawsTest, ProofThatBeginsLaterKnowsNoFirstWholeEpoch) {
  const auto found = ProveDraws(OneSource(1000), {1000}, 500, 3100);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->at(0).whole_epochs, 2);
  EXPECT_EQ(found->at(0).in_last, 100);
}

TEST(ProveDrawsTest, SmallBitmapTakesSeveralTurnsAndFindsTheSame) {
  const auto two_sources = [](std::int64_t draw) {
    const std::int64_t of = draw / 2;
    const std::int64_t samples = draw % 2 == 0 ? 700 : 90;
    return DrawnSample{draw % 2, of / samples,
                       PermutedSample(7, of / samples, of % samples, samples)};
  };
  for (const std::int64_t bytes : {1, 13, 1000}) {
    const auto found = ProveDraws(two_sources, {700, 90}, 0, 3000, bytes);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->at(0).whole_epochs, 2);
    EXPECT_EQ(found->at(0).in_last, 100);
    EXPECT_EQ(found->at(1).whole_epochs, 16);
    EXPECT_EQ(found->at(1).in_last, 60);
  }
}

TEST(ProveDrawsTest, SampleDrawnTwiceOrLeftOutIsFoundInEveryTurn) {
  const auto order = OneSource(1000);
  for (const std::int64_t bytes : {13, 1000}) {
    const auto twice = [&order](std::int64_t draw) { return order(draw == 1700 ? 1650 : draw); };
    const auto found = ProveDraws(twice, {1000}, 0, 1800, bytes);
    EXPECT_EQ(found.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(found.status().message()), HasSubstr("draw 1700 is sample"));
    EXPECT_THAT(std::string(found.status().message()), HasSubstr("second time in epoch 1"));

    // The epoch ends one draw early.
    const auto left_out = [&order](std::int64_t draw) {
      return draw >= 999 ? DrawnSample{0, 1, order(draw + 1).sample} : order(draw);
    };
    EXPECT_THAT(std::string(ProveDraws(left_out, {1000}, 0, 1500, bytes).status().message()),
                HasSubstr("left out 1 samples"));
  }
}

TEST(ProveDrawsTest, ImpossibleDrawsAreFound) {
  const auto fails = [](const DrawnSample& drawn) {
    return ProveDraws([&drawn](std::int64_t) { return drawn; }, {10}, 0, 1).status().code();
  };
  EXPECT_EQ(fails({1, 0, 0}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(fails({0, 0, 10}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(fails({0, 3, 0}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(fails({0, 0, 9}), absl::StatusCode::kOk);
}

TEST(ProofDigestTest, IsTheLineages) {
  const Facts facts = Story();
  const Lineage whole = *Audit(facts);
  const std::vector<SourceDraws> draws = {{.samples = 1000, .whole_epochs = 0, .in_last = 240}};
  EXPECT_EQ(ProofDigest(whole, draws), ProofDigest(*Audit(facts), draws));
  EXPECT_EQ(ProofDigest(whole, draws).size(), 64u);
  Lineage shorter = whole;
  shorter.ranges.pop_back();
  EXPECT_NE(ProofDigest(whole, draws), ProofDigest(shorter, draws));
  EXPECT_NE(ProofDigest(whole, draws), ProofDigest(whole, {}));
}

}  // namespace
}  // namespace paceline::cli
