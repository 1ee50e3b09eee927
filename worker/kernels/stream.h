// A Stream runs tasks one after another; an Event marks a point in one stream that another
// can wait for. On the CPU a stream either runs a task at once on the caller's thread
// (kInline: the compute stream) or on a thread of its own (kThread: the communication
// stream), so that communication overlaps computation as it does on a GPU.
// Invariant: tasks of a stream never overlap and never reorder; after the first task that
// returns an error the stream is failed: later tasks are skipped and Synchronize returns
// that first error.
// Invariant: tasks compute with denormal numbers flushed to zero (flush_denormals.h).
// Threading: one thread enqueues; Event::Record belongs to the stream's tasks; status() and
// Abort-like flags may be read from any thread. Enqueue allocates nothing: a task's captures
// fit kTaskBytes, and at most kQueueTasks wait (Enqueue blocks until there is room).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

#include "common/status.h"

namespace paceline {

class Stream;

// Recorded by a stream, waited for by another stream or by a thread. Reusable: each Record
// begins a new use, and a Wait refers to the latest Record enqueued before it.
class Event {
 public:
  Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

 private:
  friend class Stream;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t recorded_ = 0;   // Records enqueued
  std::uint64_t completed_ = 0;  // Records reached
};

class Stream {
 public:
  enum class Mode { kInline, kThread };
  static constexpr std::size_t kTaskBytes = 128;
  static constexpr std::size_t kQueueTasks = 1024;

  Stream(Mode mode, std::string name);
  ~Stream();  // drains, then joins
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // `task`: trivially copyable callable () -> absl::Status or void, of at most kTaskBytes.
  template <typename Task>
  void Enqueue(Task task) {
    static_assert(sizeof(Task) <= kTaskBytes && std::is_trivially_copyable_v<Task> &&
                  std::is_trivially_destructible_v<Task>);
    EnqueueErased(
        [](void* storage) -> absl::Status {
          if constexpr (std::is_void_v<std::invoke_result_t<Task&>>) {
            (*static_cast<Task*>(storage))();
            return absl::OkStatus();
          } else {
            return (*static_cast<Task*>(storage))();
          }
        },
        &task, sizeof(Task));
  }

  // Marks `event` once every earlier task of this stream has run (or was skipped).
  void Record(Event& event);
  // Later tasks of this stream run after `event`'s latest record.
  void Wait(Event& event);
  // Waits until the stream is empty. The first error of its tasks, if any.
  absl::Status Synchronize();
  absl::Status status() const;

 private:
  using Function = absl::Status (*)(void* storage);
  void EnqueueErased(Function function, const void* task, std::size_t bytes);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
