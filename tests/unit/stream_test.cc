#include "worker/kernels/stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "worker/kernels/wait_gauge.h"

namespace paceline {
namespace {

// Holds a stream's task until it is opened.
class Gate {
 public:
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    opened_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [this] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = false;
};

TEST(StreamTest, InlineStreamRunsTasksOnTheCallersThread) {
  Stream stream(Stream::Mode::kInline, "compute");
  std::thread::id ran_on;

  stream.Enqueue([out = &ran_on] { *out = std::this_thread::get_id(); });

  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

TEST(StreamTest, ThreadStreamRunsTasksInOrderOnAnotherThread) {
  Stream stream(Stream::Mode::kThread, "communication");
  std::vector<int> order;
  std::thread::id ran_on;

  for (int i = 0; i < 5000; ++i) {  // more than the queue holds
    stream.Enqueue([&order, i] { order.push_back(i); });
  }
  stream.Enqueue([out = &ran_on] { *out = std::this_thread::get_id(); });

  ASSERT_TRUE(stream.Synchronize().ok());
  ASSERT_EQ(order.size(), 5000u);
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(order[i], i);
  EXPECT_NE(ran_on, std::this_thread::get_id());
}

TEST(StreamTest, FirstErrorStaysAndLaterTasksAreSkipped) {
  for (const Stream::Mode mode : {Stream::Mode::kInline, Stream::Mode::kThread}) {
    Stream stream(mode, "test");
    int ran = 0;
    stream.Enqueue([]() -> absl::Status { return absl::UnavailableError("first"); });
    stream.Enqueue([]() -> absl::Status { return absl::AbortedError("second"); });
    stream.Enqueue([&ran] { ++ran; });

    const absl::Status status = stream.Synchronize();

    EXPECT_EQ(status, absl::UnavailableError("first"));
    EXPECT_EQ(stream.status(), status);
    EXPECT_EQ(ran, 0);
  }
}

#if defined(__x86_64__) || defined(__aarch64__)
TEST(StreamTest, TasksTakeDenormalNumbersForZeroAndLeaveTheThreadAsItWas) {
  volatile float smallest = std::numeric_limits<float>::min();
  volatile float denormal = smallest / 4;
  ASSERT_GT(denormal, 0.0f);
  for (const Stream::Mode mode : {Stream::Mode::kInline, Stream::Mode::kThread}) {
    Stream stream(mode, "test");
    float result = 1;
    float of_operand = 1;
    stream.Enqueue([&] {
      result = smallest / 4;
      of_operand = denormal * 1e30f;
    });

    ASSERT_TRUE(stream.Synchronize().ok());

    EXPECT_EQ(result, 0.0f);
    EXPECT_EQ(of_operand, 0.0f);
    EXPECT_EQ(smallest / 4, denormal);
  }
}
#endif

TEST(StreamTest, WaitHoldsAStreamUntilTheOtherHasReachedTheRecord) {
  Gate gate;
  Event event;
  std::atomic<int> value = 0;
  int seen = -1;
  Stream first(Stream::Mode::kThread, "first");
  Stream second(Stream::Mode::kThread, "second");

  first.Enqueue([&gate] { gate.Pass(); });
  first.Enqueue([&value] { value = 7; });
  first.Record(event);
  second.Wait(event);
  second.Enqueue([&] { seen = value; });
  gate.Open();

  ASSERT_TRUE(second.Synchronize().ok());
  EXPECT_EQ(seen, 7);
}

TEST(StreamTest, WaitOfAnInlineStreamBlocksItsCaller) {
  Event event;
  std::atomic<int> value = 0;
  Stream compute(Stream::Mode::kInline, "compute");
  Stream communication(Stream::Mode::kThread, "communication");
  for (int round = 1; round <= 200; ++round) {
    communication.Enqueue([&value, round] { value = round; });
    communication.Record(event);
    compute.Wait(event);
    ASSERT_EQ(value, round);
  }
}

TEST(StreamTest, WaitForAnEventThatWasNeverRecordedReturns) {
  Event event;
  Stream stream(Stream::Mode::kInline, "compute");
  stream.Wait(event);
  EXPECT_TRUE(stream.Synchronize().ok());
}

// Otherwise whoever waits for a failed stream would hang.
TEST(StreamTest, FailedStreamStillReachesItsRecords) {
  Event event;
  Stream failed(Stream::Mode::kThread, "failed");
  Stream waiting(Stream::Mode::kInline, "waiting");
  failed.Enqueue([]() -> absl::Status { return absl::InternalError("broken"); });
  failed.Record(event);

  waiting.Wait(event);

  EXPECT_FALSE(failed.Synchronize().ok());
  EXPECT_TRUE(waiting.Synchronize().ok());
}

TEST(StreamTest, EnqueueOnAFullQueueWaitsForRoom) {
  Gate gate;
  Stream stream(Stream::Mode::kThread, "full");
  std::atomic<std::size_t> enqueued = 0;
  std::atomic<std::size_t> ran = 0;
  stream.Enqueue([&gate] { gate.Pass(); });
  {
    std::jthread producer([&] {
      for (std::size_t i = 0; i < Stream::kQueueTasks + 100; ++i) {
        stream.Enqueue([&ran] { ++ran; });
        ++enqueued;
      }
    });
    while (enqueued < Stream::kQueueTasks - 1) std::this_thread::yield();
    EXPECT_LT(enqueued, Stream::kQueueTasks);  // the gate's task keeps its place
    gate.Open();
  }
  ASSERT_TRUE(stream.Synchronize().ok());
  EXPECT_EQ(ran, Stream::kQueueTasks + 100);
}

TEST(WaitGaugeTest, ShowsWhetherItsThreadWaitsInAStream) {
  Gate gate;
  Stream thread_stream(Stream::Mode::kThread, "thread");
  Stream inline_stream(Stream::Mode::kInline, "inline");
  Event passed;
  thread_stream.Enqueue([&gate] { gate.Pass(); });
  thread_stream.Record(passed);
  WaitGauge gauge;
  {
    std::jthread waiter([&] {
      const WaitGauge::Attached attached(gauge);
      inline_stream.Wait(passed);
    });
    while (!gauge.waiting()) std::this_thread::yield();
    gate.Open();
  }
  EXPECT_FALSE(gauge.waiting());
  // Of this thread nothing shows: the gauge was the other's.
  EXPECT_TRUE(thread_stream.Synchronize().ok());
  EXPECT_FALSE(gauge.waiting());
}

TEST(StreamTest, DestructionRunsWhatWasEnqueued) {
  std::atomic<int> ran = 0;
  {
    Stream stream(Stream::Mode::kThread, "short");
    for (int i = 0; i < 100; ++i) stream.Enqueue([&ran] { ++ran; });
  }
  EXPECT_EQ(ran, 100);
}

}  // namespace
}  // namespace paceline
