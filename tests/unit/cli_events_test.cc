// What the command line tells of a run's events, fact by fact.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "launch/cli/generations.h"
#include "launch/cli/run_events.h"

namespace paceline::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr char kRunFile[] = R"([run]
name = "tiny"
member = "uni-a"
project = "demo"
[model]
vocab_size = 256
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
[data]
train = "/corpus"
[train]
sequence_length = 16
global_batch_size = 4
micro_batch_size = 1
steps = 40
learning_rate = 1e-3
[launch]
nodes = 2
slots_per_node = 2
)";

// A journal in memory, as a coordinator would write it.
class Story {
 public:
  explicit Story(std::uint64_t first_index = 1) : index_(first_index - 1) {}

  v1::Fact& Next() {
    v1::Fact& fact = facts_.emplace_back();
    fact.set_index(++index_);
    fact.set_at_ms(static_cast<std::int64_t>(index_) * 1000);
    return fact;
  }
  void Epoch(std::uint64_t epoch) { Next().mutable_epoch_opened()->set_epoch(epoch); }
  void Joined(std::uint64_t id, const std::string& name, const std::string& run_id = "") {
    v1::NodeJoined& joined = *Next().mutable_node_joined();
    joined.set_node_id(id);
    joined.mutable_node()->set_name(name);
    joined.mutable_node()->set_host("here");
    joined.mutable_node()->set_slots(2);
    joined.mutable_node()->set_run_id(run_id);
  }
  void Submitted(const std::string& run_id, bool resume = false) {
    v1::SubmitRunRequest& request = *Next().mutable_run_submitted()->mutable_request();
    request.set_run_id(run_id);
    request.set_run_file(kRunFile);
    request.set_resume(resume);
  }
  void Started(std::uint64_t generation, std::int64_t step, const std::string& checkpoint) {
    v1::GenerationStarted& started = *Next().mutable_generation_started();
    SetKey(generation, started.mutable_key());
    started.mutable_layout()->set_pipeline(1);
    started.mutable_layout()->set_data(4);
    started.mutable_layout()->set_expert(1);
    started.set_start_step(step);
    started.set_checkpoint(checkpoint);
    for (int rank = 0; rank < 4; ++rank) {
      v1::RankPlacement& placement = *started.add_placements();
      placement.set_rank(rank);
      placement.set_node_id(rank < 2 ? 1 : 2);
      placement.set_slot(rank % 2);
    }
  }
  void Committed(std::uint64_t generation, std::int64_t step) {
    v1::CheckpointCommittedFact& committed = *Next().mutable_checkpoint_committed();
    SetKey(generation, committed.mutable_key());
    committed.mutable_position()->set_step(step);
  }
  v1::GenerationEnded& Ended(std::uint64_t generation, std::int64_t step,
                             const std::string& reason) {
    v1::GenerationEnded& ended = *Next().mutable_generation_ended();
    SetKey(generation, ended.mutable_key());
    ended.set_last_step(step);
    ended.set_reason(reason);
    return ended;
  }
  static void SetKey(std::uint64_t generation, v1::GenerationKey* key) {
    key->set_run_id("mine");
    key->set_generation(generation);
  }

  RunEvents Read() const {
    RunEvents events("mine");
    for (const v1::Fact& fact : facts_) events.Take(fact);
    return events;
  }
  std::vector<std::string> Texts() const {
    std::vector<std::string> texts;
    for (const RunEvent& event : Read().Events()) texts.push_back(event.text);
    return texts;
  }
  nlohmann::json Generations() const { return GenerationsOf(Read().Events()); }
  v1::Fact& Written() { return facts_.back(); }  // the last one
  RunEvent Last() const { return Read().Events().back(); }

 private:
  std::vector<v1::Fact> facts_;
  std::uint64_t index_;
};

TEST(RunEventsTest, BeginningOfARunIsTold) {
  Story story;
  story.Epoch(1);
  story.Submitted("mine");
  story.Joined(1, "node-0", "mine");
  story.Joined(2, "node-1", "mine");
  story.Started(1, 0, "");
  EXPECT_TRUE(story.Read().whole());
  EXPECT_THAT(
      story.Texts(),
      ElementsAre("a coordinator started, epoch 1",
                  "submitted: 40 steps on 2 nodes x 2 slots, paid by uni-a for demo",
                  "node-0 joined from here with 2 slots", "node-1 joined from here with 2 slots",
                  "generation 1 started from the beginning: pipeline 1 x data 4, expert 1; "
                  "ranks 0-1 on node-0, 2-3 on node-1"));
}

TEST(RunEventsTest, OtherRunsAndTheirNodesAreLeftOut) {
  Story story;
  story.Epoch(1);
  story.Epoch(2);
  story.Joined(1, "node-0");
  story.Joined(2, "node-1");
  story.Joined(3, "node-2");  // nobody's
  story.Submitted("another");
  story.Submitted("mine");
  story.Next().mutable_run_ended()->set_run_id("another");
  story.Started(1, 0, "");
  v1::NodeLeft& left = *story.Next().mutable_node_left();
  left.set_node_id(2);
  left.set_reason("its lease ran out");
  EXPECT_THAT(story.Texts(),
              ElementsAre("a coordinator started, epoch 2", HasSubstr("node-0 joined"),
                          HasSubstr("node-1 joined"), HasSubstr("submitted"),
                          HasSubstr("generation 1 started"), "node-1 left: its lease ran out"));
}

TEST(RunEventsTest, FailureIsToldWithCauseCulpritAndNode) {
  Story story;
  story.Joined(1, "node-0");
  story.Joined(2, "node-1");
  story.Submitted("mine");
  story.Started(1, 0, "");
  v1::GenerationEnded& ended =
      story.Ended(1, 17, "rank 3 on node-1 was ended by SIGKILL:\nno more");
  ended.mutable_failure()->set_rank(3);
  ended.mutable_failure()->set_signal(9);
  ended.mutable_failure()->set_cause(v1::FAILURE_CAUSE_WORKER_EXIT);
  const RunEvent event = story.Last();
  EXPECT_EQ(event.text,
            "generation 1 ended at step 17 after 1.0 s, worker exit: rank 3 on node-1 was ended by "
            "SIGKILL: no more");
  EXPECT_EQ(event.fields.at("cause"), "worker_exit");
  EXPECT_EQ(event.fields.at("scope"), "rank");
  EXPECT_EQ(event.fields.at("culprit").at("node"), "node-1");
  EXPECT_EQ(event.fields.at("culprit").at("signal"), 9);
  EXPECT_EQ(event.fields.at("last_step"), 17);
}

TEST(RunEventsTest, EndWithoutAFailureHasNeitherCauseNorCulprit) {
  Story story;
  story.Submitted("mine");
  story.Started(1, 0, "");
  story.Ended(1, 40, "all 40 steps are done");
  const RunEvent event = story.Last();
  EXPECT_TRUE(event.fields.at("cause").is_null());
  EXPECT_TRUE(event.fields.at("culprit").is_null());
}

TEST(RunEventsTest, RollbacksTellWhatIsLost) {
  Story story;
  story.Submitted("mine");
  v1::WindowsRolledBack& back = *story.Next().mutable_windows_rolled_back();
  Story::SetKey(1, back.mutable_key());
  back.mutable_window()->set_first_step(20);
  back.mutable_window()->set_end_step(120);
  EXPECT_EQ(story.Last().text,
            "rolled back to step 20: steps up to 120 were granted, none is lost");
  back.set_lost_steps(7);
  back.set_lost_tokens(2800);
  EXPECT_EQ(story.Last().text, "rolled back to step 20: 7 steps done and lost, 2.80k tokens");
}

TEST(RunEventsTest, CheckpointsAreToldWithWhatBecameOfThem) {
  Story story;
  story.Submitted("mine");
  v1::CheckpointCommittedFact& committed = *story.Next().mutable_checkpoint_committed();
  Story::SetKey(1, committed.mutable_key());
  committed.mutable_position()->set_step(20);
  committed.set_folder("/runs/mine/checkpoints/step-00000020-g1");
  committed.set_bytes(2048);
  v1::CheckpointDiscarded& discarded = *story.Next().mutable_checkpoint_discarded();
  discarded.set_run_id("mine");
  discarded.set_folder("/runs/mine/checkpoints/step-00000030-g1");
  discarded.set_reason("its generation ended");
  v1::CheckpointDiscarded& retired = *story.Next().mutable_checkpoint_discarded();
  retired.set_run_id("mine");
  retired.set_folder("/runs/mine/checkpoints/step-00000010-g1");
  retired.set_reason("retired: [checkpoint] keep = 1");
  retired.set_committed(true);
  EXPECT_THAT(story.Texts(),
              ElementsAre(StartsWith("submitted"),
                          "checkpoint step-00000020-g1 committed, 2.00 KiB, 0 tokens so far",
                          "checkpoint step-00000030-g1 not committed: its generation ended",
                          "checkpoint step-00000010-g1 given up: retired: [checkpoint] keep = 1"));
  EXPECT_TRUE(story.Last().routine);
  retired.set_reason("found damaged: a byte is off");
  EXPECT_FALSE(story.Last().routine);
}

TEST(RunEventsTest, WindowsAreRoutine) {
  Story story;
  story.Submitted("mine");
  v1::WindowGranted& granted = *story.Next().mutable_window_granted();
  Story::SetKey(1, granted.mutable_key());
  granted.mutable_window()->set_end_step(128);
  EXPECT_EQ(story.Last().text, "steps 0 to 128 granted");
  EXPECT_TRUE(story.Last().routine);
}

TEST(RunEventsTest, ReasonThatTheGenerationsEndGaveIsNotSaidAgain) {
  Story story;
  story.Submitted("mine");
  story.Started(1, 0, "");
  story.Ended(1, 17, "rank 3 is gone");
  v1::RunEnded& ended = *story.Next().mutable_run_ended();
  ended.set_run_id("mine");
  ended.set_state(v1::RUN_STATE_FAILED);
  ended.set_reason("rank 3 is gone");
  ended.set_retryable(true);
  EXPECT_EQ(story.Last().text, "run failed; paceline resume may go on");
  EXPECT_EQ(story.Last().fields.at("reason"), "rank 3 is gone");
}

TEST(RunEventsTest, CoordinatorThatComesBackWhileTheRunIsActiveTookOver) {
  Story story;
  story.Epoch(1);
  story.Submitted("mine");
  story.Epoch(2);
  EXPECT_EQ(story.Last().text, "a coordinator took over, epoch 2");
  v1::RunEnded& ended = *story.Next().mutable_run_ended();
  ended.set_run_id("mine");
  ended.set_state(v1::RUN_STATE_STOPPED);
  ended.set_reason("asked by the user");
  EXPECT_EQ(story.Last().text, "run stopped: asked by the user");
  story.Epoch(3);
  EXPECT_EQ(story.Last().text, "a coordinator started, epoch 3");
}

TEST(RunEventsTest, HistoryThatBeginsLaterThanTheRunIsNotWhole) {
  Story story(/*first_index=*/100);
  story.Started(3, 20, "/c/step-00000020-g2");
  EXPECT_TRUE(story.Read().known());
  EXPECT_FALSE(story.Read().whole());
  EXPECT_THAT(story.Last().text, HasSubstr("started from step 20, step-00000020-g2"));
  EXPECT_THAT(story.Last().text, HasSubstr("on node 1")) << "its name is not known";

  v1::StateSnapshot snapshot;
  snapshot.add_runs()->mutable_request()->set_run_id("mine");
  v1::SnapshotNode& node = *snapshot.add_nodes();
  node.set_node_id(1);
  node.mutable_node()->set_name("node-0");
  RunEvents events("mine");
  events.Take(snapshot);
  EXPECT_TRUE(events.known());
  EXPECT_FALSE(events.whole());
  EXPECT_THAT(events.Events(), IsEmpty());
}

TEST(RunEventsTest, UnknownRunIsUnknown) {
  Story story;
  story.Submitted("another");
  EXPECT_FALSE(story.Read().known());
}

TEST(GenerationsTest, FailureEndsOneAndTheNextBeginsFromWhatIsLeft) {
  Story story;
  story.Joined(1, "node-0");
  story.Joined(2, "node-1");
  story.Submitted("mine");
  story.Started(1, 0, "");
  story.Committed(1, 10);
  v1::RankFailed& failure =
      *story.Ended(1, 17, "rank 3 on node-1 was ended by SIGKILL").mutable_failure();
  failure.set_rank(3);
  failure.set_signal(9);
  failure.set_cause(v1::FAILURE_CAUSE_WORKER_EXIT);
  story.Started(2, 10, "/c/step-00000010-g1");

  const nlohmann::json generations = story.Generations();

  ASSERT_EQ(generations.size(), 2u);
  const nlohmann::json& first = generations[0];
  EXPECT_EQ(first.at("generation"), 1);
  EXPECT_EQ(first.at("from"), "beginning");
  EXPECT_EQ(first.at("started_at_ms"), 4000);
  EXPECT_EQ(first.at("started_at"), "1970-01-01T00:00:04.000Z");
  EXPECT_EQ(first.at("ranks"), 4);
  EXPECT_EQ(first.at("nodes"), nlohmann::json::array({"node-0", "node-1"}));
  EXPECT_EQ(first.at("layout").at("data"), 4);
  EXPECT_EQ(first.at("committed_step"), 10);
  EXPECT_EQ(first.at("last_step"), 17);
  EXPECT_EQ(first.at("ended_at_ms"), 6000);
  EXPECT_EQ(first.at("seconds"), 2.0);
  EXPECT_EQ(first.at("cause"), "worker_exit");
  EXPECT_EQ(first.at("scope"), "rank");
  EXPECT_EQ(first.at("culprit").at("node"), "node-1");
  const nlohmann::json& second = generations[1];
  EXPECT_EQ(second.at("from"), "checkpoint");
  EXPECT_EQ(second.at("checkpoint"), "/c/step-00000010-g1");
  EXPECT_EQ(second.at("start_step"), 10);
  for (const char* key : {"committed_step", "last_step", "ended_at", "ended_at_ms", "seconds",
                          "end_reason", "cause", "scope", "culprit"}) {
    EXPECT_TRUE(second.at(key).is_null()) << key;
  }
}

TEST(GenerationsTest, StateInMemoryIsToldApartFromStateInSnapshots) {
  Story story;
  story.Submitted("mine");
  story.Started(1, 17, "");
  v1::GenerationStarted& started = *story.Written().mutable_generation_started();
  started.set_live(true);
  EXPECT_EQ(story.Generations()[0].at("from"), "live");
  started.add_sources()->set_to(3);
  EXPECT_EQ(story.Generations()[0].at("from"), "snapshot");
}

TEST(GenerationsTest, HistoryThatBeginsInTheMiddleOfOneTellsItsEndAlone) {
  Story story(/*first_index=*/100);
  story.Ended(3, 50, "all 50 steps are done");
  const nlohmann::json generations = story.Generations();
  ASSERT_EQ(generations.size(), 1u);
  EXPECT_EQ(generations[0].at("generation"), 3);
  EXPECT_EQ(generations[0].at("end_reason"), "all 50 steps are done");
  for (const char* key : {"started_at", "from", "start_step", "layout", "ranks", "nodes",
                          "committed_step", "seconds", "cause", "scope"}) {
    EXPECT_TRUE(generations[0].at(key).is_null()) << key;
  }
  EXPECT_THAT(GenerationTable(generations, 10), HasSubstr("all 50 steps are done"));
}

TEST(GenerationsTest, TableHasTheNewestWithALineEach) {
  Story story;
  story.Submitted("mine");
  for (std::uint64_t generation = 1; generation <= 3; ++generation) {
    story.Started(generation, 0, "");
    v1::RankFailed& failure =
        *story.Ended(generation, 7, "rank 2 on node 2 failed: " + std::string(500, 'x') + "\nend")
             .mutable_failure();
    failure.set_rank(2);
    failure.set_cause(v1::FAILURE_CAUSE_NODE_LOST);
  }
  const nlohmann::json generations = story.Generations();
  EXPECT_EQ(generations[2].at("scope"), "node");
  const std::string table = GenerationTable(generations, 2);
  EXPECT_THAT(table, StartsWith("GENERATION  STARTED "));
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 3);
  EXPECT_THAT(table, HasSubstr("\n2 "));
  EXPECT_THAT(table,
              HasSubstr("\n3           " + FormatLocalTime(6000) + "  beginning  pp 1 x dp 4  7 "));
  EXPECT_THAT(table, HasSubstr("  node lost: rank 2 on node 2 failed: xxx"));
  EXPECT_THAT(table, HasSubstr("xxx...\n"));
}

TEST(ParseSinceTest, TakesDurationsAndLocalTimes) {
  constexpr std::int64_t kNow = 1'700'000'000'000;
  EXPECT_EQ(ParseSince("90s", kNow), kNow - 90'000);
  EXPECT_EQ(ParseSince("30m", kNow), kNow - 1'800'000);
  EXPECT_EQ(ParseSince("2h", kNow), kNow - 7'200'000);
  EXPECT_EQ(ParseSince("3d", kNow), kNow - 3 * 86'400'000);
  const auto local = ParseSince(FormatLocalTime(kNow), 0);
  EXPECT_EQ(local, kNow);
  EXPECT_EQ(ParseSince("2024-06-11 11:30", 0), ParseSince("2024-06-11T11:30:00", 0));
  EXPECT_TRUE(ParseSince("2024-06-11", 0).has_value());
}

TEST(ParseSinceTest, RefusesWhatItCannotRead) {
  for (const char* text : {"", "h", "2", "-2h", "2x", "2 h", "yesterday", "2024-06-11 25",
                           "99999999999d", "2024-06-11 11:30 o'clock"}) {
    EXPECT_EQ(ParseSince(text, 0), std::nullopt) << text;
  }
}

TEST(FormatTimeTest, UtcHasMilliseconds) {
  EXPECT_EQ(FormatUtcTime(1'700'000'000'042), "2023-11-14T22:13:20.042Z");
}

}  // namespace
}  // namespace paceline::cli
