// A bounded queue from many threads to one loop.
// Invariant: items come out in the order they went in; once closed, nothing goes in.
// Threading: Push from any thread; Pop from one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace paceline {

template <typename Item>
class Mailbox {
 public:
  explicit Mailbox(std::size_t capacity) : capacity_(capacity) {}

  // Waits for room. False: closed, and `item` is gone.
  bool Push(Item item) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || items_.size() < capacity_; });
    if (closed_) return false;
    items_.push_back(std::move(item));
    changed_.notify_all();
    return true;
  }

  // Nullopt: nothing came until `deadline`.
  std::optional<Item> Pop(std::chrono::steady_clock::time_point deadline) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [&] { return !items_.empty(); })) return std::nullopt;
    std::optional<Item> item = std::move(items_.front());
    items_.pop_front();
    changed_.notify_all();
    return item;
  }

  // Returns what nobody will take any more.
  std::deque<Item> Close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
    return std::move(items_);
  }

 private:
  const std::size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  bool closed_ = false;
};

}  // namespace paceline
