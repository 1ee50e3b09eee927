#include "worker/trainer/generation_control.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace paceline {

GenerationControl::GenerationControl(const v1::RankStart& start)
    : granted_until_(start.start_step()) {
  for (const v1::Window& window : start.windows()) Grant(window);
}

void GenerationControl::Grant(const v1::Window& window) {
  const std::lock_guard lock(mutex_);
  // Windows arrive in order and without gaps; one that does not join on is not ours to use.
  if (window.first_step() > granted_until_) return;
  granted_until_ = std::max(granted_until_, window.end_step());
  changed_.notify_all();
}

void GenerationControl::SetPeers(const v1::Peers& peers) {
  const std::lock_guard lock(mutex_);
  peers_.emplace(peers.addresses().begin(), peers.addresses().end());
  peers_at_ = std::chrono::steady_clock::now();
  changed_.notify_all();
}

SteadyTime GenerationControl::peers_at() const {
  const std::lock_guard lock(mutex_);
  return peers_at_;
}

// A wish grows stronger and never weaker.
void GenerationControl::RequestStop(const v1::StopGeneration& stop) {
  if (!stop.moves()) {
    stop_requested_.store(true);
  } else if (!stop.at_checkpoint()) {
    move_.store(Move::kNow);
  } else if (move_.load() == Move::kNone) {
    move_.store(Move::kAtCheckpoint);
  }
}

void GenerationControl::Abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (!abort_reason_.has_value()) abort_reason_ = reason;
  if (groups_ != nullptr) groups_->Abort(*abort_reason_);
  changed_.notify_all();
}

absl::Status GenerationControl::WaitForStep(std::int64_t step, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  const bool told = changed_.wait_for(
      lock, patience, [&] { return abort_reason_.has_value() || granted_until_ > step; });
  if (abort_reason_.has_value()) return absl::AbortedError(*abort_reason_);
  if (!told) return absl::DeadlineExceededError(absl::StrCat("no window holds step ", step));
  return absl::OkStatus();
}

std::int64_t GenerationControl::granted_until() const {
  const std::lock_guard lock(mutex_);
  return granted_until_;
}

absl::StatusOr<std::vector<std::string>> GenerationControl::WaitForPeers() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return abort_reason_.has_value() || peers_.has_value(); });
  if (abort_reason_.has_value()) return absl::AbortedError(*abort_reason_);
  return *peers_;
}

absl::Status GenerationControl::status() const {
  const std::lock_guard lock(mutex_);
  if (abort_reason_.has_value()) return absl::AbortedError(*abort_reason_);
  return absl::OkStatus();
}

void GenerationControl::Attach(ParallelGroups* groups) {
  const std::lock_guard lock(mutex_);
  groups_ = groups;
  if (groups_ != nullptr && abort_reason_.has_value()) {
    groups_->Abort(*abort_reason_);
  }
}

CommunicatorProgress GenerationControl::communication() const {
  const std::lock_guard lock(mutex_);
  return groups_ == nullptr ? CommunicatorProgress{} : groups_->progress();
}

}  // namespace paceline
