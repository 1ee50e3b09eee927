// What a rank is told about its generation while it trains: windows, peers, a wish to stop, an
// abort. The command thread tells, the step thread asks.
// Invariant: after Abort every wait returns kAborted, and the attached groups are aborted.
// Threading: every method from any thread. While the coordinator is away nothing is decided, so
// no wait gives up on it; the agent's death ends them all through Abort.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/status.h"
#include "paceline/v1/agent.pb.h"
#include "worker/collectives/parallel_groups.h"

namespace paceline {

class GenerationControl {
 public:
  explicit GenerationControl(const v1::RankStart& start);

  // --- the command thread ---
  void Grant(const v1::Window& window);
  void SetPeers(const v1::Peers& peers);
  void RequestStop(const v1::StopGeneration& stop);
  void Abort(const std::string& reason);

  // --- the step thread ---
  // Waits until a window holds step index `step` (0 is the run's first). kDeadlineExceeded:
  // none came within `patience`; ask again and go on waiting.
  absl::Status WaitForStep(std::int64_t step, std::chrono::milliseconds patience);
  // The first step index that no window holds: the end of the granted range.
  std::int64_t granted_until() const;
  absl::StatusOr<std::vector<std::string>> WaitForPeers();
  SteadyTime peers_at() const;  // when they were told
  bool stop_requested() const { return stop_requested_.load(); }
  // Whether the rank shall leave with its state after a step, at which a checkpoint is due or not.
  bool move_requested(bool at_checkpoint) const {
    const Move move = move_.load();
    return move == Move::kNow || (move == Move::kAtCheckpoint && at_checkpoint);
  }
  // kAborted with its reason once Abort was called.
  absl::Status status() const;

  // Abort reaches `groups` until Detach. Both are the step thread's.
  void Attach(ParallelGroups* groups);
  void Detach() { Attach(nullptr); }
  CommunicatorProgress communication() const;

 private:
  enum class Move { kNone, kAtCheckpoint, kNow };

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t granted_until_ = 0;
  std::optional<std::vector<std::string>> peers_;
  SteadyTime peers_at_{};
  std::optional<std::string> abort_reason_;
  ParallelGroups* groups_ = nullptr;
  std::atomic<bool> stop_requested_{false};
  std::atomic<Move> move_{Move::kNone};
};

}  // namespace paceline
