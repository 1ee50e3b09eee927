// The Coordinator service: one stream for each agent.
// Invariant: of a session at most one message waits for the loop (the next is read when the loop
// has taken it), and at most kOutgoingMax wait for the agent; one that reads slower is closed.
// Threading: any thread.
#pragma once

#include <cstddef>

#include "coordinator/rpc/connections.h"
#include "coordinator/rpc/loop.h"
#include "paceline/v1/coordinator.grpc.pb.h"

namespace paceline {

class AgentService : public v1::Coordinator::CallbackService {
 public:
  static constexpr std::size_t kOutgoingMax = 1024;

  // Both are borrowed.
  AgentService(Loop& loop, Connections& connections) : loop_(loop), connections_(connections) {}

  grpc::ServerBidiReactor<v1::AgentMessage, v1::CoordinatorMessage>* AgentSession(
      grpc::CallbackServerContext* context) override;

 private:
  Loop& loop_;
  Connections& connections_;
};

}  // namespace paceline
