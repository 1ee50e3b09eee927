// The Runs service: what the command line submits, stops, drains and asks.
// Invariant: every call is finished once, by the core's answer or by a refusal.
// Threading: any thread.
#pragma once

#include "coordinator/rpc/connections.h"
#include "coordinator/rpc/loop.h"
#include "paceline/v1/coordinator.grpc.pb.h"

namespace paceline {

class RunsService : public v1::Runs::CallbackService {
 public:
  // Both are borrowed.
  RunsService(Loop& loop, Connections& connections) : loop_(loop), connections_(connections) {}

  grpc::ServerUnaryReactor* SubmitRun(grpc::CallbackServerContext* context,
                                      const v1::SubmitRunRequest* request,
                                      v1::SubmitRunResponse* response) override;
  grpc::ServerUnaryReactor* StopRun(grpc::CallbackServerContext* context,
                                    const v1::StopRunRequest* request,
                                    v1::StopRunResponse* response) override;
  grpc::ServerUnaryReactor* GetRun(grpc::CallbackServerContext* context,
                                   const v1::GetRunRequest* request,
                                   v1::RunStatus* response) override;
  grpc::ServerUnaryReactor* ListRuns(grpc::CallbackServerContext* context,
                                     const v1::ListRunsRequest* request,
                                     v1::ListRunsResponse* response) override;
  grpc::ServerUnaryReactor* ListNodes(grpc::CallbackServerContext* context,
                                      const v1::ListNodesRequest* request,
                                      v1::ListNodesResponse* response) override;
  grpc::ServerUnaryReactor* DrainNode(grpc::CallbackServerContext* context,
                                      const v1::DrainNodeRequest* request,
                                      v1::DrainNodeResponse* response) override;
  grpc::ServerUnaryReactor* UndrainNode(grpc::CallbackServerContext* context,
                                        const v1::UndrainNodeRequest* request,
                                        v1::UndrainNodeResponse* response) override;

 private:
  Loop& loop_;
  Connections& connections_;
};

}  // namespace paceline
