// Takes snapshots of a rank's state: into one of two files of shared memory in turn, copied and
// digested by the step thread, finished and told behind its back. One that cannot be taken costs no
// training.
// Threading: Take belongs to the step thread; totals() from any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "paceline/v1/agent.pb.h"
#include "worker/checkpoint/snapshot_file.h"
#include "worker/kernels/stream.h"

namespace paceline {

class Snapshots {
 public:
  struct Totals {
    std::int64_t taken = 0;
    std::int64_t skipped = 0;
    double stall_seconds = 0;  // that the step thread copied and digested
    std::int64_t last_at_ms = 0;
  };

  // In `folder`, of a rank that starts from `start_step`, whose state `arrays` are. Where there is
  // no memory for them that is said, and none are taken.
  Snapshots(const std::string& folder, v1::GenerationKey key, std::int32_t rank,
            std::int64_t start_step, std::vector<std::span<std::byte>> arrays,
            std::function<void(v1::WorkerMessage)> send);
  ~Snapshots();

  // Copies the state, which is that after `step`, and returns. Skipped while the one before is
  // not finished.
  void Take(std::int64_t step);

  Totals totals() const;

 private:
  void Finish(SnapshotFile& file);

  const v1::GenerationKey key_;
  const std::int32_t rank_;
  const std::vector<std::span<std::byte>> arrays_;
  std::string digest_;  // of the last one
  const std::function<void(v1::WorkerMessage)> send_;
  std::array<SnapshotFile, 2> files_;
  std::size_t next_ = 0;
  bool on_ = false;
  SnapshotHead head_;  // of the one under way: the step thread's, and while busy_ its own thread's
  std::atomic<bool> busy_{false};
  mutable std::mutex mutex_;
  Totals totals_;
  Stream behind_;  // last: its thread uses the rest
};

}  // namespace paceline
