// The Unix socket that an agent's workers speak to. It carries messages and knows nothing of
// generations.
// Invariant: each worker has at most one message under way (the next is read when the handler
// has returned), and at most kCommandsMax commands waiting; a worker that lets them pile up is
// cut off. The socket lies in a folder that its owner alone can enter, which is what guards it.
// Threading: handlers are called on the session's own thread; every method from any thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/status.h"
#include "paceline/v1/agent.pb.h"

namespace paceline {

struct WorkerServerOptions {
  std::string socket_path;
  int seats = 0;
  // `session` is unique in the server's life. False: the session is refused and ended.
  std::function<bool(int seat, std::uint64_t session, v1::WorkerMessage message)> on_message;
  // Called once for each session whose Hello was accepted.
  std::function<void(int seat, std::uint64_t session)> on_closed;
};

class WorkerServer {
 public:
  // kUnavailable: the socket cannot be made.
  static absl::StatusOr<std::unique_ptr<WorkerServer>> Start(WorkerServerOptions options);
  // Ends every session.
  ~WorkerServer();

  // Queues a command for the newest session of `seat`; nothing if there is none.
  void Send(int seat, v1::WorkerCommand command);
  // Waits until the commands queued for every session are written, at most `timeout`.
  void Flush(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  explicit WorkerServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
