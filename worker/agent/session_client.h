// A worker's session with its agent over the agent's Unix socket: what the worker says goes
// out, what it is told comes in. The step thread never waits on the socket: messages are queued
// and a thread writes them.
//
//   ASSIGN_OR_RETURN(auto session, AgentSession::Connect(socket, seat, 5s));
//   while (true) {
//     absl::StatusOr<v1::WorkerCommand> command = session->Next(1s);
//     if (absl::IsDeadlineExceeded(command.status())) continue;
//     if (!command.ok()) break;  // the agent has gone: exit
//     ...
//   }
//
// Invariant: messages leave in the order they were sent, except that only the newest progress
// is kept; both queues are bounded. Once the session has failed it stays so.
// Threading: Send, Flush and the counters are safe from any thread; one thread calls Next.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "common/status.h"
#include "paceline/v1/agent.pb.h"

namespace paceline {

class AgentSession {
 public:
  // Connects and says Hello for `seat`. kUnavailable: no agent answers at `socket_path` within
  // `timeout`.
  static absl::StatusOr<std::unique_ptr<AgentSession>> Connect(const std::string& socket_path,
                                                               int seat,
                                                               std::chrono::milliseconds timeout);
  // Writes what is still queued and ends the stream; gives up after two seconds.
  ~AgentSession();
  AgentSession(const AgentSession&) = delete;
  AgentSession& operator=(const AgentSession&) = delete;

  // Queues `message`. Waits only when the queue is full, at most the `timeout` of Connect; if
  // nothing could be queued by then the agent counts as gone. A RankProgress replaces one that
  // is still queued and never waits. After the session has failed messages are dropped.
  void Send(v1::WorkerMessage message);

  // The next command. kDeadlineExceeded: none came within `timeout`. kUnavailable: the agent has
  // gone or ended the session, for ever; commands that had arrived before come first.
  absl::StatusOr<v1::WorkerCommand> Next(std::chrono::milliseconds timeout);

  // Waits until everything sent so far has been written to the socket. kDeadlineExceeded: not
  // within `timeout`. kUnavailable: the agent has gone.
  absl::Status Flush(std::chrono::milliseconds timeout);

  // Seconds that Send made its callers wait, in all.
  double blocked_seconds() const;

 private:
  struct Impl;
  explicit AgentSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
