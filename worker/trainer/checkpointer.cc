#include "worker/trainer/checkpointer.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/xxh128.h"
#include "spdlog/spdlog.h"

namespace paceline {
namespace {

constexpr std::chrono::milliseconds kLookAgain{20};

}  // namespace

Checkpointer::Checkpointer(int rank, v1::GenerationKey key, std::string folder,
                           std::function<void(v1::WorkerMessage)> send,
                           std::function<bool()> aborted)
    : rank_(rank),
      key_(std::move(key)),
      folder_(std::move(folder)),
      send_(std::move(send)),
      aborted_(std::move(aborted)),
      writer_(rank,
              [this](absl::StatusOr<WrittenPart> part, std::int64_t step) { OnDone(part, step); }) {
}

void Checkpointer::Write(const v1::DataPosition& position, v1::CheckpointReason reason,
                         std::span<const SliceView> slices,
                         std::span<const std::span<std::byte>> replicated) {
  const auto begin = std::chrono::steady_clock::now();
  {
    std::unique_lock lock(mutex_);
    if (reason == v1::CHECKPOINT_REASON_INTERVAL && !pending_.empty()) {
      const std::int64_t busy = pending_.begin()->first;
      lock.unlock();
      return ReportFailure(
          absl::ResourceExhaustedError(absl::StrCat("the part of step ", busy,
                                                    " is still being written; the disk is "
                                                    "too slow for [checkpoint] interval_steps")),
          position.step());
    }
    pending_[position.step()] = {position, reason, ""};
  }
  if (!replicated.empty()) {
    Xxh128 digest;
    for (const std::span<std::byte> array : replicated) digest.Update(array.data(), array.size());
    const std::lock_guard lock(mutex_);
    pending_[position.step()].replica_digest = digest.Hex();
  }
  Flush();
  const absl::Status copied =
      writer_.Snapshot({position.step(), key_.generation()}, folder_, slices);
  std::unique_lock lock(mutex_);
  totals_.stall_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (copied.ok()) return;
  pending_.erase(position.step());
  lock.unlock();
  ReportFailure(copied, position.step());
}

void Checkpointer::ReportFailure(const absl::Status& status, std::int64_t step) {
  spdlog::error("rank {}: checkpoint of step {} failed: {}", rank_, step, status.ToString());
  v1::WorkerMessage message;
  v1::CheckpointFailed& failed = *message.mutable_checkpoint_failed();
  *failed.mutable_key() = key_;
  failed.set_rank(rank_);
  failed.set_step(step);
  failed.set_error(std::string(status.message()));
  send_(std::move(message));
}

void Checkpointer::OnDone(const absl::StatusOr<WrittenPart>& part, std::int64_t step) {
  Pending pending;
  {
    const std::lock_guard lock(mutex_);
    pending = pending_[step];
    pending_.erase(step);
    if (part.ok()) {
      totals_.write_seconds += part->write_seconds;
      totals_.bytes += part->bytes;
      totals_.last_at_ms = ReadClock().wall_ms;
    }
  }
  if (absl::IsCancelled(part.status()) && aborted_()) {
    return spdlog::info("rank {}: {}", rank_, std::string(part.status().message()));
  }
  if (!part.ok()) return ReportFailure(part.status(), step);
  v1::WorkerMessage message;
  v1::CheckpointPart& durable = *message.mutable_checkpoint_part();
  *durable.mutable_key() = key_;
  durable.set_rank(rank_);
  *durable.mutable_position() = pending.position;
  durable.set_reason(pending.reason);
  durable.set_replica_digest(pending.replica_digest);
  durable.set_file(part->file);
  durable.set_bytes(part->bytes);
  for (const TensorSliceInfo& info : part->slices) {
    v1::TensorSlice& slice = *durable.add_slices();
    slice.set_name(info.name);
    slice.set_dtype(info.dtype);
    slice.mutable_global_shape()->Assign(info.global_shape.begin(), info.global_shape.end());
    slice.mutable_start()->Assign(info.start.begin(), info.start.end());
    slice.mutable_shape()->Assign(info.shape.begin(), info.shape.end());
    slice.set_digest(info.digest);
  }
  send_(std::move(message));
}

void Checkpointer::Flush() {
  do {
    if (aborted_()) writer_.GiveUp();
  } while (!writer_.FlushFor(kLookAgain));
}

Checkpointer::Totals Checkpointer::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace paceline
