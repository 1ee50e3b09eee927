// The loop: the one thread that owns the core and the journal.
//
//   handlers --Post--> queue --(a batch)--> Decide, Decide, ... --> Append (one fsync) --> effects
//                                                                      \--> questions
//
// Invariant: an effect leaves, and a question sees a fact, only after it is durable. When the
// journal fails, or a newer epoch is seen, the loop stops for good: no effect of the lost batch
// ever leaves, and nothing more is taken. What needs no append (an answer, a repeat) leaves only
// where the fence was asked `fence_interval` ago at most: a loop that has stood still asks first.
// Threading: Post, TryPost and Ask from any thread; Start, Stop and the destructor from one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/status.h"
#include "coordinator/core/core.h"
#include "coordinator/metrics/coordinator_metrics.h"
#include "coordinator/rpc/file_worker.h"
#include "coordinator/rpc/run_files.h"
#include "coordinator/storage/epoch_fence.h"
#include "coordinator/storage/journal.h"

namespace paceline {

// Where messages and answers leave. Called on the loop's thread, and Answer on the file worker's
// too; must not wait.
class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void Send(core::SessionId session, const v1::CoordinatorMessage& message) = 0;
  virtual void Close(core::SessionId session, const absl::Status& reason) = 0;
  virtual void Answer(core::CallId call, const absl::Status& status, const std::string& run_id) = 0;
};

// Runs on the loop, once. `status` is not OK when the deadline has passed or the loop ends: then
// the core is not to be asked.
using Question = std::function<void(const absl::Status& status, const core::Core& core, Now now)>;

struct LoopOptions {
  std::size_t queue_max = 4096;           // of what TryPost and Ask add
  std::size_t batch_max = 256;            // events before an Append
  std::size_t batch_bytes_max = 8 << 20;  // of facts before an Append
  std::uint64_t snapshot_facts = 10'000;  // facts, or bytes of them, between snapshots
  std::uint64_t snapshot_bytes = 16 << 20;
  std::chrono::milliseconds fence_interval{300};
};

class Loop {
 public:
  // All are borrowed and outlive the loop. `on_broken` is called once, on the loop's thread, when
  // the journal has failed, or with kFailedPrecondition when a newer coordinator has taken over.
  struct Parts {
    core::Core& core;
    storage::Journal& journal;
    Outbox& outbox;
    FileWorker& files;
    CoordinatorFiles& coordinator_files;
    const storage::EpochFence& fence;
    CoordinatorMetrics& metrics;
    std::function<void(const absl::Status&)> on_broken;
  };
  Loop(Parts parts, LoopOptions options);
  ~Loop();

  // After replay: opens the core and begins.
  void Start();
  // Takes no more, decides what is queued, waits for the files, writes a last snapshot, and ends.
  // The journal's error where it broke.
  absl::Status Stop();

  // Another coordinator has taken over: nothing is decided any more, and Stop returns `status`.
  void Abandon(const absl::Status& status);

  // For what must not be lost and is bounded by its sender: one event for each session or file
  // job. `taken`, where given, is called when the loop takes the event: time for the next.
  void Post(core::Event event, std::function<void()> taken = nullptr);
  // For what a client may repeat. kResourceExhausted: the queue is full; kUnavailable: the loop
  // ends.
  absl::Status TryPost(core::Event event);
  absl::Status Ask(SteadyTime deadline, Question question);

 private:
  struct Entry {
    core::Event event;
    std::function<void()> taken;
    Question question;  // set: a question, and `event` means nothing
    SteadyTime deadline;
  };

  absl::Status Admit(Entry entry);
  void Run();
  std::vector<Entry> TakeBatch();
  void Process(std::vector<Entry> batch);
  void Add(core::Decision decision);
  bool Commit();
  bool StillLeads();
  void Carry(const core::Effect& effect);
  absl::Status Fenced(const std::function<absl::Status()>& job) const;
  void AnswerSubmit(const core::AnswerCall& answer);
  void MaybeSnapshot(bool last);
  void Break(const absl::Status& status);

  const Parts parts_;
  const LoopOptions options_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  bool admitting_ = false;  // Start has been called, and neither Stop nor a broken journal
  bool ending_ = false;
  bool ended_ = false;
  absl::Status broken_;

  // The loop's own.
  std::vector<v1::Fact> facts_;
  std::vector<core::Effect> effects_;
  std::size_t facts_bytes_ = 0;
  std::uint64_t facts_since_snapshot_ = 0;
  std::uint64_t bytes_since_snapshot_ = 0;
  SteadyTime led_at_;  // when it was last seen that no newer epoch exists

  std::thread thread_;
};

}  // namespace paceline
