// Everyone who waits to hear from the coordinator: the agents' sessions and unanswered calls.
// Invariant: both are bounded, every call is answered exactly once, and what is sent to somebody
// who has gone is dropped.
// Threading: any thread; internally locked, and no lock is held while a session is called.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "common/status.h"
#include "coordinator/rpc/loop.h"

namespace paceline {

// What the connections know of an agent's stream.
class SessionPeer {
 public:
  virtual ~SessionPeer() = default;
  virtual void Send(const v1::CoordinatorMessage& message) = 0;
  virtual void Close(const absl::Status& reason) = 0;
};

using CallAnswer = std::function<void(const absl::Status& status, const std::string& run_id)>;

class Connections : public Outbox {
 public:
  static constexpr std::size_t kSessionsMax = 20'000;
  static constexpr std::size_t kCallsMax = 1024;

  core::SessionId NextSession();
  // kResourceExhausted: too many; kUnavailable: CloseAll was called. The table shares the session
  // with whoever is calling it while gRPC ends it.
  absl::Status AddSession(core::SessionId id, std::shared_ptr<SessionPeer> session);
  void RemoveSession(core::SessionId id);

  // Likewise. `answer` is called once.
  absl::StatusOr<core::CallId> AddCall(CallAnswer answer);

  void Send(core::SessionId id, const v1::CoordinatorMessage& message) override;
  void Close(core::SessionId id, const absl::Status& reason) override;
  void Answer(core::CallId id, const absl::Status& status, const std::string& run_id) override;

  // Closes every session and answers every call with `reason`, now and from now on.
  void CloseAll(const absl::Status& reason);
  // After CloseAll: waits at most `limit` until every session has ended.
  void WaitUntilEmpty(std::chrono::milliseconds limit);

 private:
  std::shared_ptr<SessionPeer> Find(core::SessionId id);

  std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status closed_;
  std::uint64_t last_id_ = 0;
  std::map<core::SessionId, std::shared_ptr<SessionPeer>> sessions_;
  std::map<core::CallId, CallAnswer> calls_;
};

}  // namespace paceline
