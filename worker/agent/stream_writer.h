// The writing half of a gRPC stream: a bounded queue and the thread that drains it, so that no
// caller waits on the network.
// Invariant: messages are written in the order they were queued; of those given to SendLatest
// only the newest waits, and it goes when the queue is empty.
// Threading: Send, SendLatest and Flush from any thread; `write` is called on the writer's own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "common/status.h"

namespace paceline {

// The largest message either hop accepts: a checkpoint part that names every slice of a rank.
inline constexpr int kControlMessageBytesMax = 64 << 20;

template <typename Message>
class StreamWriter {
 public:
  // `write` returns false once the stream is broken, and no thread may stay in it for ever: who
  // owns the stream ends it before this is destroyed.
  StreamWriter(std::function<bool(const Message&)> write, std::size_t capacity)
      : write_(std::move(write)), capacity_(capacity), thread_([this] { Drain(); }) {}
  ~StreamWriter() { Close(); }
  StreamWriter(const StreamWriter&) = delete;
  StreamWriter& operator=(const StreamWriter&) = delete;

  // False: there was no room within `timeout`, or the stream is closed.
  bool Send(Message message, std::chrono::milliseconds timeout = {}) {
    std::unique_lock lock(mutex_);
    const bool room =
        changed_.wait_for(lock, timeout, [&] { return closed_ || queue_.size() < capacity_; });
    if (!room || closed_) return false;
    queue_.push_back(std::move(message));
    ++queued_;
    changed_.notify_all();
    return true;
  }

  // Replaces a message that SendLatest queued earlier and that has not been written yet.
  void SendLatest(Message message) {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    if (!latest_.has_value()) ++queued_;
    latest_ = std::move(message);
    changed_.notify_all();
  }

  // Waits until everything queued so far is written.
  absl::Status Flush(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    const std::uint64_t goal = queued_;
    if (!changed_.wait_for(lock, timeout, [&] { return closed_ || written_ >= goal; })) {
      return absl::DeadlineExceededError("messages are still waiting to be written");
    }
    return closed_ ? absl::UnavailableError("the stream has ended") : absl::OkStatus();
  }

  // Drops what is queued; after a write in progress nothing more is written.
  void Close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      changed_.notify_all();
    }
    const std::lock_guard lock(join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Drain() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return closed_ || !queue_.empty() || latest_.has_value(); });
      if (closed_) return;
      Message message;
      if (!queue_.empty()) {
        message = std::move(queue_.front());
        queue_.pop_front();
      } else {
        message = *std::exchange(latest_, std::nullopt);
      }
      lock.unlock();
      const bool written = write_(message);
      lock.lock();
      if (written) {
        ++written_;
      } else {
        closed_ = true;
      }
      changed_.notify_all();
    }
  }

  const std::function<bool(const Message&)> write_;
  const std::size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Message> queue_;
  std::optional<Message> latest_;
  std::uint64_t queued_ = 0;
  std::uint64_t written_ = 0;
  bool closed_ = false;
  std::mutex join_mutex_;
  std::thread thread_;
};

}  // namespace paceline
