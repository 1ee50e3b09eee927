#include "worker/agent/worker_server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <map>
#include <mutex>
#include <utility>

#include "paceline/v1/agent.grpc.pb.h"
#include "worker/agent/stream_writer.h"

namespace paceline {
namespace {

constexpr std::size_t kCommandsMax = 1024;

using Stream = grpc::ServerReaderWriter<v1::WorkerCommand, v1::WorkerMessage>;
using Writer = StreamWriter<v1::WorkerCommand>;

}  // namespace

struct WorkerServer::Impl : v1::Agent::Service {
  // Shared between the handler that owns it and a Send that has just looked it up.
  struct Session {
    Session(std::uint64_t given_id, grpc::ServerContext* given_context, Stream* stream)
        : id(given_id),
          context(given_context),
          writer([stream](const v1::WorkerCommand& command) { return stream->Write(command); },
                 kCommandsMax) {}
    const std::uint64_t id;
    grpc::ServerContext* const context;
    Writer writer;
  };

  grpc::Status WorkerSession(grpc::ServerContext* context, Stream* stream) override;
  std::shared_ptr<Session> Find(int seat);

  WorkerServerOptions options;
  std::unique_ptr<grpc::Server> server;
  std::mutex mutex;
  std::uint64_t last_session = 0;
  std::map<int, std::shared_ptr<Session>> sessions;  // by seat, the newest
};

grpc::Status WorkerServer::Impl::WorkerSession(grpc::ServerContext* context, Stream* stream) {
  v1::WorkerMessage message;
  if (!stream->Read(&message) || !message.has_hello()) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "a session begins with Hello"};
  }
  const int seat = message.hello().seat();
  if (seat < 0 || seat >= options.seats) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "Hello.seat " + std::to_string(seat) +
                                                    " is not one of this agent's " +
                                                    std::to_string(options.seats)};
  }
  std::shared_ptr<Session> session;
  {
    const std::lock_guard lock(mutex);
    session = std::make_shared<Session>(++last_session, context, stream);
    sessions[seat] = session;
  }
  bool accepted = options.on_message(seat, session->id, std::move(message));
  const bool greeted = accepted;
  while (accepted && stream->Read(&message)) {
    accepted = options.on_message(seat, session->id, std::move(message));
  }
  {
    const std::lock_guard lock(mutex);
    if (const auto found = sessions.find(seat);
        found != sessions.end() && found->second == session) {
      sessions.erase(found);
    }
  }
  // A write that waits for a worker which reads nothing would keep the thread for ever.
  if (!accepted) context->TryCancel();
  session->writer.Close();
  if (greeted) options.on_closed(seat, session->id);
  if (accepted) return grpc::Status::OK;
  return {grpc::StatusCode::FAILED_PRECONDITION, "this worker is not the seat's any more"};
}

std::shared_ptr<WorkerServer::Impl::Session> WorkerServer::Impl::Find(int seat) {
  const std::lock_guard lock(mutex);
  const auto found = sessions.find(seat);
  return found == sessions.end() ? nullptr : found->second;
}

WorkerServer::WorkerServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::Start(WorkerServerOptions options) {
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  grpc::ResourceQuota quota("workers");
  quota.SetMaxThreads(2 * impl->options.seats + 8);
  grpc::ServerBuilder builder;
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kControlMessageBytesMax);
  builder.SetMaxSendMessageSize(kControlMessageBytesMax);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  int bound = 0;
  builder.AddListeningPort("unix:" + impl->options.socket_path, grpc::InsecureServerCredentials(),
                           &bound);
  builder.RegisterService(impl.get());
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || bound == 0) {
    return absl::UnavailableError("cannot listen on the socket " + impl->options.socket_path +
                                  ": give a --state-dir that is writable and short");
  }
  return std::unique_ptr<WorkerServer>(new WorkerServer(std::move(impl)));
}

WorkerServer::~WorkerServer() {
  impl_->server->Shutdown(std::chrono::system_clock::now());
  impl_->server->Wait();
}

void WorkerServer::Send(int seat, v1::WorkerCommand command) {
  const std::shared_ptr<Impl::Session> session = impl_->Find(seat);
  if (session == nullptr || session->writer.Send(std::move(command))) return;
  // Its queue is full, or the stream is broken. The worker counts as gone either way.
  const std::lock_guard lock(impl_->mutex);
  const auto found = impl_->sessions.find(seat);
  if (found != impl_->sessions.end() && found->second == session) session->context->TryCancel();
}

void WorkerServer::Flush(std::chrono::milliseconds timeout) {
  for (int seat = 0; seat < impl_->options.seats; ++seat) {
    if (const auto session = impl_->Find(seat)) (void)session->writer.Flush(timeout);
  }
}

}  // namespace paceline
