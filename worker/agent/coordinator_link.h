// The agent's stream to its coordinator, made anew whenever it ends: found, authorised,
// registered, and after a failure tried again with growing, jittered pauses.
// Invariant: of each stream the handler sees the messages in order, then one on_lost. Messages
// queued for one stream never reach the next: what must is the outbox's matter.
// Threading: handlers are called on the link's own thread; every method from any thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "common/status.h"
#include "paceline/v1/coordinator.pb.h"

namespace paceline {

struct CoordinatorLinkOptions {
  std::string address;           // HOST:PORT, or
  std::string coordinator_file;  // coordinator.json, read before every attempt
  std::string token_file;        // read before every attempt; empty: no token is sent
  v1::AgentMessage registration;
  std::function<void(v1::CoordinatorMessage)> on_message;
  std::function<void(absl::Status)> on_lost;                 // also for an attempt that failed
  std::function<std::chrono::milliseconds()> reconnect_max;  // between attempts, asked each time
};

class CoordinatorLink {
 public:
  explicit CoordinatorLink(CoordinatorLinkOptions options);
  // Ends the stream and joins.
  ~CoordinatorLink();

  // Queues `message` for the present stream; nothing if there is none. With `newest_only` it
  // replaces such a one that still waits.
  void Send(v1::AgentMessage message, bool newest_only);
  // Ends the present stream; another attempt follows.
  void Drop();
  // Waits until what was queued is written, at most `timeout`; then no stream is made any more.
  void Finish(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
