#include "coordinator/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/server_credentials.h>

#include <chrono>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/address.h"
#include "common/timeouts.h"
#include "common/token.h"
#include "coordinator/rpc/agent_service.h"
#include "coordinator/rpc/runs_service.h"

namespace paceline {
namespace {

constexpr int kMessageBytesMax = 64 << 20;  // a checkpoint part names every slice it holds
constexpr int kMetadataBytesMax = 16 << 10;
constexpr int kPingIntervalMinMs = 1000;
constexpr std::chrono::seconds kSessionsEndLimit{3};
constexpr std::chrono::milliseconds kShutdownLimit{200};

// Credentials apply it to every call, health checks and reflection included.
class TokenCheck : public grpc::AuthMetadataProcessor {
 public:
  explicit TokenCheck(const std::string& token) : bearer_(BearerOf(token)) {}

  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext*, OutputMetadata* consumed,
                       OutputMetadata*) override {
    const auto found = metadata.find("authorization");
    if (found == metadata.end()) {
      return {grpc::StatusCode::UNAUTHENTICATED,
              "the call carries no token: send the metadata \"authorization: Bearer TOKEN\", with "
              "what is in the token file that coordinator.json names"};
    }
    const std::string_view given(found->second.data(), found->second.size());
    if (!EqualSecrets(given, bearer_)) {
      return {grpc::StatusCode::UNAUTHENTICATED,
              "the call's token is not this coordinator's: read the token file that "
              "coordinator.json names"};
    }
    consumed->emplace("authorization", std::string(given));
    return grpc::Status::OK;
  }

 private:
  const std::string bearer_;
};

}  // namespace

struct RpcServer::Impl {
  Impl(Loop& loop, Connections& connections)
      : connections(connections), agents(loop, connections), runs(loop, connections) {}

  Connections& connections;
  AgentService agents;
  RunsService runs;
  std::string address;
  std::unique_ptr<grpc::Server> server;
};

RpcServer::RpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RpcServer::~RpcServer() { Stop(absl::UnavailableError("the coordinator is ending")); }

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const std::string& address,
                                                            const std::string& token, Loop& loop,
                                                            Connections& connections) {
  ASSIGN_OR_RETURN(Address parsed, ParseLoopbackAddress("--listen", address));
  auto impl = std::make_unique<Impl>(loop, connections);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  // Local credentials send plain text and take connections of this machine alone; unlike insecure
  // ones they can check each call's token.
  const auto credentials = grpc::experimental::LocalServerCredentials(LOCAL_TCP);
  credentials->SetAuthMetadataProcessor(std::make_shared<TokenCheck>(token));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(parsed.ToString(), credentials, &parsed.port);
  builder.RegisterService(&impl->agents);
  builder.RegisterService(&impl->runs);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
  // Two coordinators on one port would each get half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(kKeepalive.count()));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(kKeepalive.count()));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingIntervalMinMs);
  // Reflection alone is served by synchronous threads.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr) {
    return absl::AlreadyExistsError(absl::StrCat(
        "cannot listen on --listen = \"", address,
        "\": the address is in use, or not this machine's; choose another port, or 0 ", "for any"));
  }
  impl->address = parsed.ToString();
  return std::unique_ptr<RpcServer>(new RpcServer(std::move(impl)));
}

const std::string& RpcServer::address() const { return impl_->address; }

void RpcServer::Stop(const absl::Status& reason) {
  impl_->connections.CloseAll(reason);
  impl_->connections.WaitUntilEmpty(kSessionsEndLimit);
  // Answers are on their way by now. What shutdown waits for is idle clients, which may take
  // seconds to notice.
  impl_->server->Shutdown(std::chrono::system_clock::now() + kShutdownLimit);
  impl_->server->Wait();
}

}  // namespace paceline
