#include "worker/agent/stream_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <vector>

#include "worker/agent/mailbox.h"

namespace paceline {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;

// A stream whose writes wait until the test opens it.
class Gate {
 public:
  bool Write(int message) {
    std::unique_lock lock(mutex_);
    ++begun_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    written_.push_back(message);
    return !broken_;
  }
  void AwaitFirstWrite() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return begun_ > 0; });
  }
  void Open(bool broken = false) {
    const std::lock_guard lock(mutex_);
    open_ = true;
    broken_ = broken;
    changed_.notify_all();
  }
  std::vector<int> written() {
    const std::lock_guard lock(mutex_);
    return written_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int> written_;
  int begun_ = 0;
  bool open_ = false;
  bool broken_ = false;
};

TEST(StreamWriterTest, OrderIsKeptAndOfTheLatestOnlyTheNewestGoes) {
  Gate gate;
  StreamWriter<int> writer([&](int message) { return gate.Write(message); }, 10);
  ASSERT_TRUE(writer.Send(1));
  gate.AwaitFirstWrite();
  writer.SendLatest(100);
  ASSERT_TRUE(writer.Send(2));
  writer.SendLatest(101);
  ASSERT_TRUE(writer.Send(3));
  gate.Open();
  ASSERT_TRUE(writer.Flush(10s).ok());
  EXPECT_THAT(gate.written(), ElementsAre(1, 2, 3, 101));
}

TEST(StreamWriterTest, FullQueueRefusesAfterTheTimeGiven) {
  Gate gate;
  StreamWriter<int> writer([&](int message) { return gate.Write(message); }, 2);
  ASSERT_TRUE(writer.Send(1));
  gate.AwaitFirstWrite();
  ASSERT_TRUE(writer.Send(2));
  ASSERT_TRUE(writer.Send(3));
  EXPECT_FALSE(writer.Send(4));
  EXPECT_FALSE(writer.Send(4, 5ms));
  EXPECT_EQ(writer.Flush(1ms).code(), absl::StatusCode::kDeadlineExceeded);
  gate.Open();
  EXPECT_TRUE(writer.Send(5, 10s));
  ASSERT_TRUE(writer.Flush(10s).ok());
  EXPECT_THAT(gate.written(), ElementsAre(1, 2, 3, 5));
}

TEST(StreamWriterTest, BrokenStreamRefusesEverythingAfterIt) {
  Gate gate;
  StreamWriter<int> writer([&](int message) { return gate.Write(message); }, 10);
  ASSERT_TRUE(writer.Send(1));
  gate.AwaitFirstWrite();
  ASSERT_TRUE(writer.Send(2));
  gate.Open(/*broken=*/true);
  EXPECT_EQ(writer.Flush(10s).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(writer.Send(3, 10s));
  EXPECT_THAT(gate.written(), ElementsAre(1));
}

TEST(StreamWriterTest, CloseWakesASenderThatWaits) {
  Gate gate;
  StreamWriter<int> writer([&](int message) { return gate.Write(message); }, 1);
  ASSERT_TRUE(writer.Send(1));
  gate.AwaitFirstWrite();
  ASSERT_TRUE(writer.Send(2));
  auto waiting = std::async(std::launch::async, [&] { return writer.Send(3, 60s); });
  auto closing = std::async(std::launch::async, [&] { writer.Close(); });
  EXPECT_FALSE(waiting.get());
  gate.Open();
  closing.get();
  EXPECT_THAT(gate.written(), ElementsAre(1));
}

TEST(MailboxTest, ItemsComeOutInOrderAndNothingComesByItsDeadline) {
  Mailbox<int> mailbox(10);
  EXPECT_TRUE(mailbox.Push(1));
  EXPECT_TRUE(mailbox.Push(2));
  EXPECT_EQ(mailbox.Pop(std::chrono::steady_clock::now()), 1);
  EXPECT_EQ(mailbox.Pop(std::chrono::steady_clock::now()), 2);
  EXPECT_EQ(mailbox.Pop(std::chrono::steady_clock::now()), std::nullopt);
}

TEST(MailboxTest, FullMailboxHoldsItsSenderBack) {
  Mailbox<int> mailbox(1);
  ASSERT_TRUE(mailbox.Push(1));
  auto second = std::async(std::launch::async, [&] { return mailbox.Push(2); });
  EXPECT_EQ(second.wait_for(5ms), std::future_status::timeout);
  EXPECT_EQ(mailbox.Pop(std::chrono::steady_clock::now() + 10s), 1);
  EXPECT_TRUE(second.get());
}

TEST(MailboxTest, CloseReturnsTheRestAndRefusesWhatComesAfter) {
  Mailbox<int> mailbox(1);
  ASSERT_TRUE(mailbox.Push(1));
  auto second = std::async(std::launch::async, [&] { return mailbox.Push(2); });
  const std::deque<int> rest = mailbox.Close();
  EXPECT_FALSE(second.get());
  EXPECT_THAT(rest, ElementsAre(1));
  EXPECT_FALSE(mailbox.Push(3));
}

}  // namespace
}  // namespace paceline
