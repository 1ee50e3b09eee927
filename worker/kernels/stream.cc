#include "worker/kernels/stream.h"

#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <stop_token>
#include <vector>

#include "common/check.h"
#include "worker/kernels/flush_denormals.h"
#include "worker/kernels/wait_gauge.h"

namespace paceline {
namespace {

// One place in the queue. Marks (records and waits) run even on a failed stream: whoever waits
// for an event must never hang because the stream before it failed.
struct QueuedTask {
  absl::Status (*function)(void* storage) = nullptr;
  bool is_mark = false;
  alignas(std::max_align_t) std::byte storage[Stream::kTaskBytes];
};

}  // namespace

// Threading: `mutex` guards everything below it; tasks run without it.
struct Stream::Impl {
  Mode mode = Mode::kInline;

  mutable std::mutex mutex;
  std::condition_variable_any work;  // a task was added
  std::condition_variable idle;      // a task was finished or a place became free
  std::vector<QueuedTask> ring;      // kThread only
  std::size_t head = 0;              // the oldest task
  std::size_t count = 0;             // tasks in the ring, the one that runs included
  absl::Status error;                // the first

  std::jthread thread;  // last: it must end before what it uses

  // Runs one task, unless it is to be skipped, and keeps the first error.
  void Run(Function function, void* storage, bool is_mark);
  void Push(Function function, const void* task, std::size_t bytes, bool is_mark);
  void Loop(const std::stop_token& stop);
};

void Stream::Impl::Run(Function function, void* storage, bool is_mark) {
  if (!is_mark) {
    std::lock_guard lock(mutex);
    if (!error.ok()) return;
  }
  absl::Status status = [&] {
    const FlushDenormals flush;
    return function(storage);
  }();
  if (status.ok()) return;
  std::lock_guard lock(mutex);
  if (error.ok()) error = std::move(status);
}

void Stream::Impl::Push(Function function, const void* task, std::size_t bytes, bool is_mark) {
  if (mode == Mode::kInline) {
    QueuedTask queued;
    std::memcpy(queued.storage, task, bytes);
    Run(function, queued.storage, is_mark);
    return;
  }
  std::unique_lock lock(mutex);
  idle.wait(lock, [this] { return count < ring.size(); });
  QueuedTask& queued = ring[(head + count) % ring.size()];
  queued.function = function;
  queued.is_mark = is_mark;
  std::memcpy(queued.storage, task, bytes);
  ++count;
  work.notify_one();
}

void Stream::Impl::Loop(const std::stop_token& stop) {
  std::unique_lock lock(mutex);
  while (work.wait(lock, stop, [this] { return count > 0; })) {
    // The task keeps its place while it runs, so nobody writes over it.
    QueuedTask& task = ring[head];
    lock.unlock();
    Run(task.function, task.storage, task.is_mark);
    lock.lock();
    head = (head + 1) % ring.size();
    --count;
    idle.notify_all();
  }
}

Stream::Stream(Mode mode, std::string name) : impl_(std::make_unique<Impl>()) {
  impl_->mode = mode;
  if (mode == Mode::kInline) return;
  impl_->ring.resize(kQueueTasks);
  impl_->thread = std::jthread([impl = impl_.get()](std::stop_token stop) { impl->Loop(stop); });
  // The kernel keeps 15 characters of a thread's name.
  pthread_setname_np(impl_->thread.native_handle(), name.substr(0, 15).c_str());
}

Stream::~Stream() { Synchronize().IgnoreError(); }

void Stream::EnqueueErased(Function function, const void* task, std::size_t bytes) {
  impl_->Push(function, task, bytes, /*is_mark=*/false);
}

void Stream::Record(Event& event) {
  std::uint64_t ticket = 0;
  {
    std::lock_guard lock(event.mutex_);
    ticket = ++event.recorded_;
  }
  struct Mark {
    Event* event;
    std::uint64_t ticket;
  };
  const Mark mark{&event, ticket};
  impl_->Push(
      [](void* storage) -> absl::Status {
        const Mark& mark = *static_cast<const Mark*>(storage);
        // Notified under the lock: the waiter may destroy the event as soon as it has woken.
        std::lock_guard lock(mark.event->mutex_);
        mark.event->completed_ = std::max(mark.event->completed_, mark.ticket);
        mark.event->changed_.notify_all();
        return absl::OkStatus();
      },
      &mark, sizeof(mark), /*is_mark=*/true);
}

void Stream::Wait(Event& event) {
  struct Mark {
    Event* event;
    std::uint64_t ticket;
  };
  Mark mark{&event, 0};
  {
    std::lock_guard lock(event.mutex_);
    mark.ticket = event.recorded_;
    if (event.completed_ >= mark.ticket) return;
  }
  impl_->Push(
      [](void* storage) -> absl::Status {
        const Mark& mark = *static_cast<const Mark*>(storage);
        std::unique_lock lock(mark.event->mutex_);
        const WaitGauge::Waiting waiting;
        mark.event->changed_.wait(lock, [&mark] { return mark.event->completed_ >= mark.ticket; });
        return absl::OkStatus();
      },
      &mark, sizeof(mark), /*is_mark=*/true);
}

absl::Status Stream::Synchronize() {
  std::unique_lock lock(impl_->mutex);
  const WaitGauge::Waiting waiting;
  impl_->idle.wait(lock, [this] { return impl_->count == 0; });
  return impl_->error;
}

absl::Status Stream::status() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->error;
}

}  // namespace paceline
