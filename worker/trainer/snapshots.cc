#include "worker/trainer/snapshots.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/clock.h"
#include "spdlog/spdlog.h"

namespace paceline {

Snapshots::Snapshots(const std::string& folder, v1::GenerationKey key, std::int32_t rank,
                     std::int64_t start_step, std::vector<std::span<std::byte>> arrays,
                     std::function<void(v1::WorkerMessage)> send)
    : key_(std::move(key)),
      rank_(rank),
      arrays_(std::move(arrays)),
      send_(std::move(send)),
      head_{.run_id = key_.run_id(), .generation = key_.generation(), .rank = rank},
      behind_(Stream::Mode::kThread, "snapshot") {
  std::size_t bytes = 0;
  for (const std::span<std::byte> array : arrays_) bytes += array.size();
  std::error_code ignored;  // what fails shows when the files are opened
  std::filesystem::create_directories(folder, ignored);
  std::filesystem::permissions(folder, std::filesystem::perms::owner_all, ignored);
  next_ = static_cast<std::size_t>(NextSnapshot(folder, head_, start_step).which);
  for (int which = 0; which < 2; ++which) {
    const auto at = static_cast<std::size_t>(which);
    const std::string path = SnapshotPath(folder, rank, which);
    absl::StatusOr<SnapshotFile> file = SnapshotFile::Open(path, bytes);
    if (!file.ok()) {
      files_ = {};
      spdlog::warn(
          "rank {}: no snapshots are taken: {}; free memory, or set [failure] "
          "snapshot_interval_steps = 0",
          rank_, file.status().ToString());
      return;
    }
    files_[at] = *std::move(file);
  }
  on_ = true;
}

Snapshots::~Snapshots() { behind_.Synchronize().IgnoreError(); }

void Snapshots::Take(std::int64_t step) {
  if (!on_) return;
  if (busy_.load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex_);
    ++totals_.skipped;
    return;
  }
  const SteadyTime begin = std::chrono::steady_clock::now();
  SnapshotFile& file = files_[next_];
  next_ = 1 - next_;
  digest_ = file.Fill(arrays_);
  busy_.store(true, std::memory_order_release);
  head_.step = step;
  behind_.Enqueue([this, &file] {
    Finish(file);
    return absl::OkStatus();
  });
  const std::lock_guard lock(mutex_);
  totals_.stall_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void Snapshots::Finish(SnapshotFile& file) {
  file.Finish(head_, digest_);
  {
    const std::lock_guard lock(mutex_);
    ++totals_.taken;
    totals_.last_at_ms = ReadClock().wall_ms;
  }
  v1::WorkerMessage message;
  v1::SnapshotTaken& taken = *message.mutable_snapshot();
  *taken.mutable_key() = key_;
  taken.set_rank(rank_);
  taken.set_step(head_.step);
  send_(std::move(message));
  busy_.store(false, std::memory_order_release);
}

Snapshots::Totals Snapshots::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace paceline
