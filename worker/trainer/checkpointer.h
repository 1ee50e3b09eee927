// Writes this rank's part of each checkpoint behind the step thread's back and tells the agent
// how it went. A part that cannot be written is said loudly and training goes on; whether the
// checkpoint stands is the coordinator's decision. Where the generation is aborted, its checkpoints
// are of no use: what is still being written is given up, so that the rank can leave.
// Threading: Write and Flush belong to the step thread; totals() from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>

#include "common/status.h"
#include "paceline/v1/agent.pb.h"
#include "worker/checkpoint/checkpoint.h"

namespace paceline {

class Checkpointer {
 public:
  struct Totals {
    double stall_seconds = 0;  // that the step thread stood still
    double write_seconds = 0;
    std::int64_t bytes = 0;
    std::int64_t last_at_ms = 0;  // Unix time
  };

  // `folder`: the run's checkpoint folder, absolute. `aborted`: whether the generation is.
  Checkpointer(int rank, v1::GenerationKey key, std::string folder,
               std::function<void(v1::WorkerMessage)> send, std::function<bool()> aborted);
  ~Checkpointer() { Flush(); }

  // Copies `slices` and returns; the part is written behind. Whatever goes wrong is reported as
  // CheckpointFailed. At an interval, a part that is still being written is not waited for: this
  // checkpoint is given up, so that a slow disk does not hold up training. `replicated`: what
  // other ranks hold too, where there are any; its digest goes with the part.
  void Write(const v1::DataPosition& position, v1::CheckpointReason reason,
             std::span<const SliceView> slices, std::span<const std::span<std::byte>> replicated);
  // Waits until all parts are durable or have failed, and were reported, or were given up.
  void Flush();

  Totals totals() const;

 private:
  struct Pending {
    v1::DataPosition position;
    v1::CheckpointReason reason;
    std::string replica_digest;
  };
  void OnDone(const absl::StatusOr<WrittenPart>& part, std::int64_t step);
  void ReportFailure(const absl::Status& status, std::int64_t step);

  const int rank_;
  const v1::GenerationKey key_;
  const std::string folder_;
  const std::function<void(v1::WorkerMessage)> send_;
  const std::function<bool()> aborted_;
  mutable std::mutex mutex_;
  std::map<std::int64_t, Pending> pending_;  // by step; at most two
  Totals totals_;
  PartWriter writer_;  // last: its thread uses the rest
};

}  // namespace paceline
