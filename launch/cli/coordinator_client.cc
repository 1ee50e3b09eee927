#include "launch/cli/coordinator_client.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <cerrno>
#include <cstdio>
#include <random>
#include <utility>

#include "common/status.h"
#include "common/token.h"
#include "launch/local/coordinator_file.h"
#include "paceline/v1/coordinator.grpc.pb.h"

namespace paceline::cli {
namespace {

constexpr std::chrono::seconds kCallTimeout{3};

absl::Status FromGrpc(const std::string& call, const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  // The two libraries number their codes alike.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                              status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED
                          ? call + ": the coordinator does not answer: " + status.error_message()
                          : status.error_message());
}

}  // namespace

struct CoordinatorClient::Impl {
  void Prepare(grpc::ClientContext& context) const {
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    context.AddMetadata("authorization", BearerOf(token));
  }

  std::string token;
  std::unique_ptr<v1::Runs::Stub> stub;
};

CoordinatorClient::CoordinatorClient(const std::string& address, std::string token)
    : impl_(std::make_unique<Impl>()) {
  impl_->token = std::move(token);
  grpc::ChannelArguments arguments;
  // A proxy of the environment must not see loopback calls.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A restarted coordinator is found within a second, not after gRPC's growing pauses.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  impl_->stub = v1::Runs::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

CoordinatorClient::~CoordinatorClient() = default;

absl::StatusOr<std::unique_ptr<CoordinatorClient>> CoordinatorClient::ForFolder(
    const RunFolder& folder) {
  const absl::StatusOr<CoordinatorFile> file = ReadCoordinatorFile(folder.CoordinatorJson());
  if (absl::IsNotFound(file.status())) {
    return absl::UnavailableError("run " + folder.run_id + " has no coordinator");
  }
  RETURN_IF_ERROR(file.status());
  if (file->pid <= 0 || (::kill(static_cast<pid_t>(file->pid), 0) != 0 && errno == ESRCH)) {
    return absl::UnavailableError("the coordinator of run " + folder.run_id + " (process " +
                                  std::to_string(file->pid) + ") has ended");
  }
  ASSIGN_OR_RETURN(std::string token, ReadToken(folder.Token()));
  return std::make_unique<CoordinatorClient>(file->address, std::move(token));
}

absl::Status CoordinatorClient::SubmitRun(const v1::SubmitRunRequest& request) {
  grpc::ClientContext context;
  impl_->Prepare(context);
  v1::SubmitRunResponse response;
  return FromGrpc("SubmitRun", impl_->stub->SubmitRun(&context, request, &response));
}

absl::Status CoordinatorClient::StopRun(const v1::StopRunRequest& request) {
  grpc::ClientContext context;
  impl_->Prepare(context);
  v1::StopRunResponse response;
  return FromGrpc("StopRun", impl_->stub->StopRun(&context, request, &response));
}

absl::StatusOr<v1::RunStatus> CoordinatorClient::GetRun(const std::string& run_id) {
  grpc::ClientContext context;
  impl_->Prepare(context);
  v1::GetRunRequest request;
  request.set_run_id(run_id);
  v1::RunStatus status;
  RETURN_IF_ERROR(FromGrpc("GetRun", impl_->stub->GetRun(&context, request, &status)));
  return status;
}

absl::StatusOr<v1::ListNodesResponse> CoordinatorClient::ListNodes() {
  grpc::ClientContext context;
  impl_->Prepare(context);
  v1::ListNodesResponse response;
  RETURN_IF_ERROR(FromGrpc("ListNodes", impl_->stub->ListNodes(&context, {}, &response)));
  return response;
}

absl::Status CoordinatorClient::DrainNode(const v1::DrainNodeRequest& request) {
  grpc::ClientContext context;
  impl_->Prepare(context);
  v1::DrainNodeResponse response;
  return FromGrpc("DrainNode", impl_->stub->DrainNode(&context, request, &response));
}

absl::Status CoordinatorClient::UndrainNode(const v1::UndrainNodeRequest& request) {
  grpc::ClientContext context;
  impl_->Prepare(context);
  v1::UndrainNodeResponse response;
  return FromGrpc("UndrainNode", impl_->stub->UndrainNode(&context, request, &response));
}

std::string MakeRequestId() {
  std::random_device entropy;
  char text[40];
  std::snprintf(text, sizeof text, "%08x%08x%08x%08x", entropy(), entropy(), entropy(), entropy());
  return text;
}

}  // namespace paceline::cli
