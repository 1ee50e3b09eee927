// The loop over a journal that can be held up and broken: nothing leaves before it is durable.
#include "coordinator/rpc/loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using namespace std::chrono_literals;
constexpr auto kLimit = 20s;

// Keeps facts in memory. While held, Append waits; when broken, it fails.
class HeldJournal : public storage::Journal {
 public:
  absl::StatusOr<storage::Replay> Read(
      const std::function<absl::Status(const v1::StateSnapshot&)>&,
      const std::function<absl::Status(const v1::Fact&)>&) override {
    return storage::Replay{};
  }
  absl::Status OpenEpoch(Epoch) override { return absl::OkStatus(); }
  absl::Status Append(const std::vector<v1::Fact>& facts) override {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !held_; });
    --waiting_;
    if (!error_.ok()) return error_;
    facts_ += facts.size();
    ++appends_;
    return absl::OkStatus();
  }
  absl::Status WriteSnapshot(const v1::StateSnapshot& snapshot) override {
    const std::lock_guard lock(mutex_);
    snapshots_.push_back(snapshot.index());
    return absl::OkStatus();
  }

  void Hold() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  void Release(absl::Status error = absl::OkStatus()) {
    const std::lock_guard lock(mutex_);
    held_ = false;
    error_ = std::move(error);
    changed_.notify_all();
  }
  bool WaitForAppend() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kLimit, [&] { return waiting_ > 0; });
  }
  std::size_t appends() {
    const std::lock_guard lock(mutex_);
    return appends_;
  }
  std::vector<std::uint64_t> snapshots() {
    const std::lock_guard lock(mutex_);
    return snapshots_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  int waiting_ = 0;
  absl::Status error_;
  std::size_t facts_ = 0;
  std::size_t appends_ = 0;
  std::vector<std::uint64_t> snapshots_;
};

class CountingOutbox : public Outbox {
 public:
  void Send(core::SessionId, const v1::CoordinatorMessage&) override { Count(); }
  void Close(core::SessionId, const absl::Status&) override { Count(); }
  void Answer(core::CallId, const absl::Status&, const std::string&) override { Count(); }

  std::size_t sent() {
    const std::lock_guard lock(mutex_);
    return sent_;
  }
  bool WaitFor(std::size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kLimit, [&] { return sent_ >= count; });
  }

 private:
  void Count() {
    const std::lock_guard lock(mutex_);
    ++sent_;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t sent_ = 0;
};

core::AgentSaid Registration(std::uint64_t session) {
  core::AgentSaid said{core::SessionId{session}, {}};
  said.message.set_incarnation(1);
  v1::RegisterNode& node = *said.message.mutable_register_();
  node.set_name("node-" + std::to_string(session));
  node.set_incarnation(1);
  node.set_slots(1);
  node.set_protocol_version(1);
  return said;
}

class LoopTest : public ::testing::Test {
 protected:
  LoopTest() { Make({}); }

  void Make(LoopOptions options) {
    loop_.reset();
    core_ = std::make_unique<core::Core>(core::CoreOptions{});
    loop_ = std::make_unique<Loop>(
        Loop::Parts{.core = *core_,
                    .journal = journal_,
                    .outbox = outbox_,
                    .files = files_,
                    .coordinator_files = coordinator_files_,
                    .fence = fence_,
                    .metrics = metrics_,
                    .on_broken = [this](const absl::Status& status) { broken_.set_value(status); }},
        options);
  }

  // The number of live nodes, asked of the loop.
  absl::StatusOr<std::size_t> Nodes() {
    auto answer = std::make_shared<std::promise<absl::StatusOr<std::size_t>>>();
    RETURN_IF_ERROR(loop_->Ask(ReadClock().steady + kLimit,
                               [answer](const absl::Status& status, const core::Core& core, Now) {
                                 if (!status.ok()) return answer->set_value(status);
                                 answer->set_value(core.Nodes().size());
                               }));
    auto future = answer->get_future();
    if (future.wait_for(kLimit) != std::future_status::ready) {
      return absl::DeadlineExceededError("no answer");
    }
    return future.get();
  }

  HeldJournal journal_;
  CountingOutbox outbox_;
  FileWorker files_;
  TempFolder folder_;
  storage::EpochFence fence_{folder_.path(), Epoch{1}};
  CoordinatorFiles coordinator_files_{fence_};
  CoordinatorMetrics metrics_{0};
  std::promise<absl::Status> broken_;
  std::unique_ptr<core::Core> core_;
  std::unique_ptr<Loop> loop_;
};

TEST_F(LoopTest, NothingLeavesBeforeItsFactsAreDurable) {
  loop_->Start();
  ASSERT_EQ(Nodes().value(), 0u);
  journal_.Hold();
  loop_->Post(Registration(1));
  ASSERT_TRUE(journal_.WaitForAppend());
  EXPECT_EQ(outbox_.sent(), 0u);
  journal_.Release();
  EXPECT_TRUE(outbox_.WaitFor(1));
  EXPECT_EQ(Nodes().value(), 1u);
}

TEST_F(LoopTest, EventsThatWaitedTogetherAreOneAppend) {
  loop_->Start();
  ASSERT_EQ(Nodes().value(), 0u);
  journal_.Hold();
  loop_->Post(Registration(1));
  ASSERT_TRUE(journal_.WaitForAppend());
  const std::size_t before = journal_.appends();
  for (std::uint64_t session = 2; session <= 100; ++session) loop_->Post(Registration(session));
  journal_.Release();
  ASSERT_TRUE(outbox_.WaitFor(100));
  EXPECT_EQ(Nodes().value(), 100u);
  EXPECT_EQ(journal_.appends(), before + 2);
}

TEST_F(LoopTest, BrokenJournalStopsTheLoopAndNothingOfTheLostBatchLeaves) {
  loop_->Start();
  ASSERT_EQ(Nodes().value(), 0u);
  journal_.Hold();
  loop_->Post(Registration(1));
  ASSERT_TRUE(journal_.WaitForAppend());
  journal_.Release(absl::ResourceExhaustedError("disk full"));

  auto broken = broken_.get_future();
  ASSERT_EQ(broken.wait_for(kLimit), std::future_status::ready);
  EXPECT_EQ(broken.get().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(Nodes().ok());
  EXPECT_EQ(loop_->TryPost(Registration(2)).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(loop_->Stop().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(outbox_.sent(), 0u);
  EXPECT_TRUE(journal_.snapshots().empty());
}

TEST_F(LoopTest, FullQueueRefusesRequestsAndStillTakesSessions) {
  Make({.queue_max = 2});
  loop_->Start();
  ASSERT_EQ(Nodes().value(), 0u);
  journal_.Hold();
  loop_->Post(Registration(1));
  ASSERT_TRUE(journal_.WaitForAppend());
  ASSERT_TRUE(loop_->TryPost(core::Tick{}).ok());
  ASSERT_TRUE(loop_->TryPost(core::Tick{}).ok());
  EXPECT_EQ(loop_->TryPost(core::Tick{}).code(), absl::StatusCode::kResourceExhausted);
  loop_->Post(Registration(2));
  journal_.Release();
  EXPECT_TRUE(outbox_.WaitFor(2));
}

TEST_F(LoopTest, QuestionBeyondItsDeadlineIsRefused) {
  loop_->Start();
  std::promise<absl::Status> answer;
  ASSERT_TRUE(loop_
                  ->Ask(ReadClock().steady - 1s, [&](const absl::Status& status, const core::Core&,
                                                     Now) { answer.set_value(status); })
                  .ok());
  auto future = answer.get_future();
  ASSERT_EQ(future.wait_for(kLimit), std::future_status::ready);
  EXPECT_EQ(future.get().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(LoopTest, StopDecidesWhatWasTakenAndWritesASnapshot) {
  loop_->Start();
  loop_->Post(Registration(1));
  ASSERT_TRUE(outbox_.WaitFor(1));
  EXPECT_TRUE(loop_->Stop().ok());
  EXPECT_EQ(journal_.snapshots().size(), 1u);
  EXPECT_EQ(loop_->TryPost(core::Tick{}).code(), absl::StatusCode::kUnavailable);
}

TEST_F(LoopTest, SnapshotFollowsEverySoManyFacts) {
  Make({.snapshot_facts = 3});
  loop_->Start();
  for (std::uint64_t session = 1; session <= 9; ++session) {
    loop_->Post(Registration(session));
    ASSERT_TRUE(outbox_.WaitFor(session));
  }
  EXPECT_TRUE(loop_->Stop().ok());
  EXPECT_GE(journal_.snapshots().size(), 3u);
}

// It stood still, and goes on without knowing: not even what needs no append leaves.
TEST_F(LoopTest, LoopThatWasReplacedAnswersNobody) {
  Make(LoopOptions{.fence_interval = 0ms});
  loop_->Start();
  loop_->Post(Registration(1));
  ASSERT_TRUE(outbox_.WaitFor(1));
  WriteWhole(folder_ / "epoch-00000002.journal", "");
  EXPECT_EQ(Nodes().status().code(), absl::StatusCode::kUnavailable);
  auto broken = broken_.get_future();
  ASSERT_EQ(broken.wait_for(kLimit), std::future_status::ready);
  EXPECT_EQ(broken.get().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(loop_->Stop().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(journal_.snapshots().empty());
}

TEST_F(LoopTest, LoopThatIsToldOfItsSuccessorWritesNoLastSnapshot) {
  loop_->Start();
  loop_->Post(Registration(1));
  ASSERT_TRUE(outbox_.WaitFor(1));
  loop_->Abandon(absl::FailedPreconditionError("replaced"));
  EXPECT_EQ(broken_.get_future().get().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(loop_->Stop().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(journal_.snapshots().empty());
}

}  // namespace
}  // namespace paceline
