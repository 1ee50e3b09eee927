// The coordinator's gRPC server: both services, health checking and reflection, on loopback, each
// call with the token.
// Invariant: a call without the right token reaches no service, whichever it names.
// Threading: Start, Stop and the destructor on one thread.
#pragma once

#include <memory>
#include <string>

#include "common/status.h"
#include "coordinator/rpc/connections.h"
#include "coordinator/rpc/loop.h"

namespace paceline {

class RpcServer {
 public:
  // `address`: HOST:PORT of the loopback device, port 0: any. Loop and connections are borrowed.
  // kInvalidArgument: another host; kAlreadyExists: the address is in use.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const std::string& address,
                                                          const std::string& token, Loop& loop,
                                                          Connections& connections);
  ~RpcServer();

  // HOST:PORT with the real port.
  const std::string& address() const;

  // Refuses new calls, ends sessions and unanswered calls with `reason`, and waits for them; after
  // a few seconds what is left is cancelled.
  void Stop(const absl::Status& reason);

 private:
  struct Impl;
  explicit RpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
