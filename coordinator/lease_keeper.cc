#include "coordinator/lease_keeper.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "common/clock.h"

namespace paceline {

LeaseKeeper::LeaseKeeper(Options options)
    : options_(std::move(options)), thread_([this] { Run(); }) {}

LeaseKeeper::~LeaseKeeper() { Stop(/*release=*/false); }

void LeaseKeeper::Stop(bool release) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (!thread_.joinable()) return;
  thread_.join();
  if (!release || !options_.fence.Check().ok()) return;
  storage::Lease lease = options_.lease;
  lease.released = true;
  // Where it cannot be written the next coordinator waits for the lease's end.
  Complain(storage::WriteLease(options_.state_dir, lease));
}

void LeaseKeeper::Run() {
  SteadyTime tended = ReadClock().steady;
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, options_.interval, [this] { return stopping_; })) {
    lock.unlock();
    if (!RenewOnce()) return;
    if (const SteadyTime now = ReadClock().steady; now - tended >= options_.lease.limit) {
      options_.tend();
      tended = now;
    }
    lock.lock();
  }
}

bool LeaseKeeper::RenewOnce() {
  absl::Status status = options_.fence.Check();
  if (absl::IsFailedPrecondition(status)) {
    options_.on_replaced(status);
    return false;
  }
  if (status.ok()) status = storage::RenewLease(options_.state_dir, options_.fence.epoch());
  if (absl::IsNotFound(status)) status = storage::WriteLease(options_.state_dir, options_.lease);
  if (status.ok()) options_.on_renewed();
  Complain(status);
  return true;
}

void LeaseKeeper::Complain(const absl::Status& status) {
  const std::string trouble(status.message());
  if (trouble != trouble_ && !status.ok()) spdlog::error("the lease: {}", trouble);
  if (trouble != trouble_ && status.ok()) spdlog::info("the lease is renewed again");
  trouble_ = trouble;
}

}  // namespace paceline
