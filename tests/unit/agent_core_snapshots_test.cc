// What an agent does about snapshots: its own, its copies, and those its ranks begin from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "tests/unit/agent_core_fixture.h"

namespace paceline {
namespace {

using testing::HasSubstr;

class AgentSnapshotsTest : public AgentCoreTest {
 protected:
  // Generation 1 with a copy of rank 5.
  void RunWithCopy() {
    Register();
    v1::CoordinatorMessage start = Start(1);
    v1::SnapshotCopy& copy = *start.mutable_start()->add_copies();
    copy.set_rank(5);
    copy.set_address("127.0.0.1:7001");
    started_ = Told(start);
    Hello(0);
    Hello(1);
  }
  void Takes(int slot, std::int64_t step) {
    v1::WorkerMessage message;
    *message.mutable_snapshot()->mutable_key() = Key(1);
    message.mutable_snapshot()->set_step(step);
    Says(slot, message);
  }
  std::vector<AgentAction> EndWithoutWorkers() {
    Told(End(1));
    Ends(0, {.signal = SIGKILL});
    return Ends(1, {.signal = SIGKILL});
  }
  // Generation 2 goes on from step 20 in memory: rank 0 from its own snapshot, rank 1 from rank
  // `from`'s on `node`.
  v1::CoordinatorMessage GoOn(int from, const std::string& node = "node-3") {
    v1::CoordinatorMessage message = Start(2);
    message.mutable_start()->set_start_step(20);
    message.mutable_start()->set_live(true);
    for (const int to : {0, 1}) {
      v1::SnapshotSource& source = *message.mutable_start()->add_sources();
      source.set_to(to);
      source.set_from(to == 0 ? 0 : from);
      source.set_node(to == 0 ? "node-0" : node);
      source.set_address("127.0.0.1:7003");
    }
    return message;
  }
  std::vector<AgentAction> Fetched(const FetchSnapshots& task, absl::Status status) {
    return Handle(SnapshotFetched{task.key, task.sources.at(0), std::move(status), 100});
  }

  std::vector<AgentAction> started_;
};

TEST_F(AgentSnapshotsTest, ItCopiesWhileTheGenerationLasts) {
  RunWithCopy();
  const auto copies = Of<CopySnapshots>(started_);
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].base_step, 10);
  ASSERT_EQ(copies[0].copies.size(), 1u);
  EXPECT_EQ(copies[0].copies[0].rank(), 5);
  Handle(SnapshotCopied{Key(1), 5, {}, 20, 100});
  Handle(SnapshotCopied{Key(1), 5, {}, 30, 100});
  Handle(SnapshotLost{Key(1), 5, 20});
  Handle(SnapshotCopied{Key(1), 5, absl::UnavailableError("gone")});
  EXPECT_EQ(Of<StopCopying>(Told(End(1))).size(), 1u);
  Ends(0, {.signal = SIGKILL});
  const auto gone = TellsOf(Ends(1, {.signal = SIGKILL}), v1::AgentMessage::kGone);
  ASSERT_EQ(gone.size(), 1u);
  ASSERT_EQ(gone[0].gone().held_size(), 1);
  EXPECT_EQ(gone[0].gone().held(0).rank(), 5);
  EXPECT_EQ(gone[0].gone().held(0).step(), 30);
  EXPECT_TRUE(gone[0].gone().held(0).snapshot());
  EXPECT_EQ(core_.View().counters.snapshot_copies, 2);
  EXPECT_EQ(core_.View().counters.snapshot_copy_bytes, 200);
  EXPECT_EQ(core_.View().counters.snapshot_copy_failures, 1);
}

TEST_F(AgentSnapshotsTest, WhatLiesHereNeedNotCome) {
  RunWithCopy();
  Takes(0, 20);
  Handle(SnapshotCopied{Key(1), 5, {}, 20, 100});
  EndWithoutWorkers();
  const auto actions = Told(GoOn(/*from=*/5, "node-0"));
  EXPECT_TRUE(Of<FetchSnapshots>(actions).empty());
  EXPECT_EQ(Of<SpawnWorker>(actions).size(), 2u);
  const v1::RankStart own = Of<TellWorker>(Hello(0)).at(0).command.start();
  EXPECT_EQ(own.restore_folder(), "/snapshots/run/node-0");
  EXPECT_EQ(own.restore_rank(), 0);
  const v1::RankStart copy = Of<TellWorker>(Hello(1)).at(0).command.start();
  EXPECT_EQ(copy.restore_folder(), "/snapshots/run/node-0/copies");
  EXPECT_EQ(copy.restore_rank(), 5);
  EXPECT_EQ(copy.snapshot_folder(), "/snapshots/run/node-0");
}

// What lies here was found damaged, and another node's is named in its place.
TEST_F(AgentSnapshotsTest, AnotherNodesIsFetchedThoughOneLiesHere) {
  RunWithCopy();
  Takes(0, 20);
  Handle(SnapshotCopied{Key(1), 5, {}, 20, 100});
  EndWithoutWorkers();
  const auto fetches = Of<FetchSnapshots>(Told(GoOn(/*from=*/5, "node-3")));
  ASSERT_EQ(fetches.size(), 1u);
  ASSERT_EQ(fetches[0].sources.size(), 1u);
  EXPECT_EQ(fetches[0].sources[0].from(), 5);
  EXPECT_EQ(Of<SpawnWorker>(Fetched(fetches[0], absl::OkStatus())).size(), 2u);
}

TEST_F(AgentSnapshotsTest, WorkersStartWhenTheirStateHasCome) {
  RunWithCopy();
  Takes(0, 20);
  EndWithoutWorkers();
  const auto actions = Told(GoOn(/*from=*/7));
  EXPECT_TRUE(Of<SpawnWorker>(actions).empty());
  const auto fetches = Of<FetchSnapshots>(actions);
  ASSERT_EQ(fetches.size(), 1u);
  EXPECT_EQ(fetches[0].step, 20);
  EXPECT_EQ(fetches[0].limit, core_.timeouts().startup);
  ASSERT_EQ(fetches[0].sources.size(), 1u);
  EXPECT_EQ(fetches[0].sources[0].from(), 7);
  EXPECT_EQ(fetches[0].sources[0].address(), "127.0.0.1:7003");
  EXPECT_EQ(Of<SpawnWorker>(Fetched(fetches[0], absl::OkStatus())).size(), 2u);
  Hello(0);
  const v1::RankStart start = Of<TellWorker>(Hello(1)).at(0).command.start();
  EXPECT_EQ(start.restore_folder(), "/snapshots/run/node-0/copies");
  EXPECT_EQ(start.restore_rank(), 7);
  EXPECT_EQ(core_.View().counters.snapshot_fetches, 1);
}

TEST_F(AgentSnapshotsTest, ARankWhoseStateDoesNotComeFails) {
  RunWithCopy();
  Takes(0, 20);
  EndWithoutWorkers();
  const auto fetches = Of<FetchSnapshots>(Told(GoOn(/*from=*/7)));
  ASSERT_EQ(fetches.size(), 1u);
  const auto failed = TellsOf(Fetched(fetches[0], absl::NotFoundError("no such snapshot")),
                              v1::AgentMessage::kFailed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].failed().rank(), 1);
  EXPECT_EQ(failed[0].failed().status_code(), static_cast<int>(absl::StatusCode::kUnknown));
  EXPECT_THAT(failed[0].failed().error(), HasSubstr("rank 7's snapshot on node-3"));
  EXPECT_EQ(TellsOf(Told(End(2)), v1::AgentMessage::kGone).size(), 1u) << "it has no workers";
  EXPECT_TRUE(Fetched(fetches[0], absl::OkStatus()).empty()) << "too late";
}

TEST_F(AgentSnapshotsTest, WhatIsForgottenGoes) {
  RunWithCopy();
  Takes(0, 20);
  v1::CoordinatorMessage end = End(1);
  end.mutable_end()->set_forget(true);
  const auto actions = Told(end);
  ASSERT_EQ(Of<RemoveSnapshots>(actions).size(), 1u);
  // A worker that leaves after that is not kept either.
  const auto left = Of<TellWorker>(Says(0, Left(1, 0)));
  ASSERT_EQ(left.size(), 1u);
  EXPECT_TRUE(left[0].command.has_exit());
  EXPECT_TRUE(Of<RemoveSnapshots>(Told(end)).empty()) << "a repeat";
}

TEST_F(AgentSnapshotsTest, AGenerationFromTheDiskClearsWhatTheOneBeforeLeft) {
  RunWithCopy();
  Takes(0, 20);
  EndWithoutWorkers();
  EXPECT_EQ(Of<RemoveSnapshots>(Told(Start(2))).size(), 1u);
}

TEST_F(AgentSnapshotsTest, WhatNobodyComesBackForIsKeptForAnHour) {
  RunWithCopy();
  Takes(0, 20);
  EndWithoutWorkers();
  Handle(CoordinatorLost{absl::UnavailableError("gone")});
  EXPECT_TRUE(Of<RemoveSnapshots>(Advance(59min)).empty());
  ASSERT_LE(core_.NextDeadline(), now_.steady + 1min);
  EXPECT_EQ(Of<RemoveSnapshots>(Advance(1min)).size(), 1u);
  EXPECT_EQ(core_.NextDeadline(), SteadyTime::max());
}

}  // namespace
}  // namespace paceline
