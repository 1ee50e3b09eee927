#include "coordinator/rpc/runs_service.h"

#include <chrono>
#include <functional>
#include <iterator>
#include <utility>

#include "coordinator/rpc/grpc_status.h"

namespace paceline {
namespace {

// A question that waits longer is not worth its answer, whatever the client's own deadline.
constexpr std::chrono::seconds kQuestionLimit{5};

// Begins a call that the core answers by an AnswerCall; `respond` fills the response from it.
void BeginCall(Loop& loop, Connections& connections, grpc::ServerUnaryReactor* reactor,
               const std::function<void(const std::string& run_id)>& respond,
               const std::function<core::Event(core::CallId)>& event) {
  const absl::StatusOr<core::CallId> call = connections.AddCall(
      [reactor, respond](const absl::Status& status, const std::string& run_id) {
        if (status.ok()) respond(run_id);
        reactor->Finish(ToGrpc(status));
      });
  if (!call.ok()) {
    reactor->Finish(ToGrpc(call.status()));
    return;
  }
  if (const absl::Status posted = loop.TryPost(event(*call)); !posted.ok()) {
    connections.Answer(*call, posted, "");
  }
}

// Asks the loop; `answer` fills the response.
void BeginQuestion(Loop& loop, grpc::ServerUnaryReactor* reactor,
                   std::function<absl::Status(const core::Core&, Now)> answer) {
  const absl::Status asked =
      loop.Ask(ReadClock().steady + kQuestionLimit,
               [reactor, answer = std::move(answer)](const absl::Status& status,
                                                     const core::Core& core, Now now) {
                 reactor->Finish(ToGrpc(status.ok() ? answer(core, now) : status));
               });
  if (!asked.ok()) reactor->Finish(ToGrpc(asked));
}

}  // namespace

grpc::ServerUnaryReactor* RunsService::SubmitRun(grpc::CallbackServerContext* context,
                                                 const v1::SubmitRunRequest* request,
                                                 v1::SubmitRunResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  BeginCall(
      loop_, connections_, reactor,
      [response](const std::string& run_id) { response->set_run_id(run_id); },
      [request](core::CallId call) {
        return core::SubmitRunCalled{call, *request};
      });
  return reactor;
}

grpc::ServerUnaryReactor* RunsService::StopRun(grpc::CallbackServerContext* context,
                                               const v1::StopRunRequest* request,
                                               v1::StopRunResponse*) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  BeginCall(
      loop_, connections_, reactor, [](const std::string&) {},
      [request](core::CallId call) {
        return core::StopRunCalled{call, *request};
      });
  return reactor;
}

grpc::ServerUnaryReactor* RunsService::GetRun(grpc::CallbackServerContext* context,
                                              const v1::GetRunRequest* request,
                                              v1::RunStatus* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  BeginQuestion(loop_, reactor, [request, response](const core::Core& core, Now now) {
    absl::StatusOr<v1::RunStatus> status = core.GetRun(request->run_id(), now);
    if (status.ok()) *response = *std::move(status);
    return status.status();
  });
  return reactor;
}

grpc::ServerUnaryReactor* RunsService::ListRuns(grpc::CallbackServerContext* context,
                                                const v1::ListRunsRequest*,
                                                v1::ListRunsResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  BeginQuestion(loop_, reactor, [response](const core::Core& core, Now now) {
    std::vector<v1::RunStatus> runs = core.ListRuns(now);
    response->mutable_runs()->Assign(std::make_move_iterator(runs.begin()),
                                     std::make_move_iterator(runs.end()));
    return absl::OkStatus();
  });
  return reactor;
}

grpc::ServerUnaryReactor* RunsService::ListNodes(grpc::CallbackServerContext* context,
                                                 const v1::ListNodesRequest*,
                                                 v1::ListNodesResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  BeginQuestion(loop_, reactor, [response](const core::Core& core, Now now) {
    std::vector<v1::NodeStatus> nodes = core.ListNodes(now);
    response->mutable_nodes()->Assign(std::make_move_iterator(nodes.begin()),
                                      std::make_move_iterator(nodes.end()));
    return absl::OkStatus();
  });
  return reactor;
}

grpc::ServerUnaryReactor* RunsService::DrainNode(grpc::CallbackServerContext* context,
                                                 const v1::DrainNodeRequest* request,
                                                 v1::DrainNodeResponse*) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  BeginCall(
      loop_, connections_, reactor, [](const std::string&) {},
      [request](core::CallId call) {
        return core::DrainNodeCalled{call, *request};
      });
  return reactor;
}

grpc::ServerUnaryReactor* RunsService::UndrainNode(grpc::CallbackServerContext* context,
                                                   const v1::UndrainNodeRequest* request,
                                                   v1::UndrainNodeResponse*) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  BeginCall(
      loop_, connections_, reactor, [](const std::string&) {},
      [request](core::CallId call) {
        return core::UndrainNodeCalled{call, *request};
      });
  return reactor;
}

}  // namespace paceline
