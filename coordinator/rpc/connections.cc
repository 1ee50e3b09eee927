#include "coordinator/rpc/connections.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {

core::SessionId Connections::NextSession() {
  const std::lock_guard lock(mutex_);
  return core::SessionId{++last_id_};
}

absl::Status Connections::AddSession(core::SessionId id, std::shared_ptr<SessionPeer> session) {
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(closed_);
  if (sessions_.size() >= kSessionsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the coordinator serves ", kSessionsMax, " nodes already"));
  }
  sessions_.emplace(id, std::move(session));
  return absl::OkStatus();
}

void Connections::RemoveSession(core::SessionId id) {
  std::shared_ptr<SessionPeer> last;  // Declared first: destroyed after the lock is released.
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  last = std::move(found->second);
  sessions_.erase(found);
  changed_.notify_all();
}

absl::StatusOr<core::CallId> Connections::AddCall(CallAnswer answer) {
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(closed_);
  if (calls_.size() >= kCallsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(kCallsMax, " calls wait for the coordinator already; try again later"));
  }
  const core::CallId id{++last_id_};
  calls_.emplace(id, std::move(answer));
  return id;
}

std::shared_ptr<SessionPeer> Connections::Find(core::SessionId id) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second;
}

void Connections::Send(core::SessionId id, const v1::CoordinatorMessage& message) {
  if (const auto session = Find(id)) session->Send(message);
}

void Connections::Close(core::SessionId id, const absl::Status& reason) {
  if (const auto session = Find(id)) session->Close(reason);
}

void Connections::Answer(core::CallId id, const absl::Status& status, const std::string& run_id) {
  CallAnswer answer;
  {
    const std::lock_guard lock(mutex_);
    const auto found = calls_.find(id);
    if (found == calls_.end()) return;
    answer = std::move(found->second);
    calls_.erase(found);
  }
  answer(status, run_id);
}

void Connections::CloseAll(const absl::Status& reason) {
  std::map<core::SessionId, std::shared_ptr<SessionPeer>> sessions;
  std::map<core::CallId, CallAnswer> calls;
  {
    const std::lock_guard lock(mutex_);
    closed_ = reason;
    sessions = sessions_;
    calls.swap(calls_);
  }
  for (const auto& [id, session] : sessions) session->Close(reason);
  for (const auto& [id, answer] : calls) answer(reason, "");
}

void Connections::WaitUntilEmpty(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, limit, [this] { return sessions_.empty(); });
}

}  // namespace paceline
