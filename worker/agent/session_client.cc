#include "worker/agent/session_client.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "common/protocol.h"
#include "paceline/v1/agent.grpc.pb.h"
#include "worker/agent/stream_writer.h"

namespace paceline {
namespace {

constexpr std::size_t kMessagesMax = 256;
constexpr std::size_t kCommandsMax = 256;
constexpr std::chrono::milliseconds kFarewell{1000};

using Stream = grpc::ClientReaderWriter<v1::WorkerMessage, v1::WorkerCommand>;

}  // namespace

struct AgentSession::Impl {
  void ReadCommands();

  std::chrono::milliseconds timeout;
  std::unique_ptr<v1::Agent::Stub> stub;
  grpc::ClientContext context;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<StreamWriter<v1::WorkerMessage>> writer;
  std::thread reader;
  std::atomic<std::int64_t> blocked_ns{0};

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<v1::WorkerCommand> commands;
  std::optional<absl::Status> ended;
  bool closing = false;
};

void AgentSession::Impl::ReadCommands() {
  v1::WorkerCommand command;
  while (stream->Read(&command)) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return closing || commands.size() < kCommandsMax; });
    if (!closing) commands.push_back(std::move(command));
    changed.notify_all();
  }
  // The call is over, so a write in progress fails, and the writer can be joined.
  writer->Close();
  const grpc::Status status = stream->Finish();
  const std::lock_guard lock(mutex);
  ended = absl::UnavailableError("the agent has gone: " +
                                 (status.ok() ? "it ended the session" : status.error_message()));
  changed.notify_all();
}

AgentSession::AgentSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<AgentSession>> AgentSession::Connect(
    const std::string& socket_path, int seat, std::chrono::milliseconds timeout) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kControlMessageBytesMax);
  arguments.SetMaxSendMessageSize(kControlMessageBytesMax);
  const auto channel = grpc::CreateCustomChannel("unix:" + socket_path,
                                                 grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + timeout)) {
    return absl::UnavailableError("no agent answers at " + socket_path + " within " +
                                  std::to_string(timeout.count()) + " ms");
  }
  auto impl = std::make_unique<Impl>();
  impl->timeout = timeout;
  impl->stub = v1::Agent::NewStub(channel);
  impl->stream = impl->stub->WorkerSession(&impl->context);
  impl->writer = std::make_unique<StreamWriter<v1::WorkerMessage>>(
      [stream = impl->stream.get()](const v1::WorkerMessage& message) {
        return stream->Write(message);
      },
      kMessagesMax);
  v1::WorkerMessage message;
  message.mutable_hello()->set_seat(seat);
  message.mutable_hello()->set_pid(::getpid());
  message.mutable_hello()->set_protocol_version(kWorkerProtocolVersion);
  impl->writer->Send(std::move(message));
  impl->reader = std::thread([impl = impl.get()] { impl->ReadCommands(); });
  return std::unique_ptr<AgentSession>(new AgentSession(std::move(impl)));
}

// A cancelled stream may lose messages that the agent has received but not read. So the end is
// announced and the agent's answer awaited, before the stream is cancelled.
AgentSession::~AgentSession() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->closing = true;
    impl_->changed.notify_all();
  }
  if (impl_->writer->Flush(kFarewell).ok()) {
    impl_->writer->Close();
    impl_->stream->WritesDone();
    std::unique_lock lock(impl_->mutex);
    impl_->changed.wait_for(lock, kFarewell, [&] { return impl_->ended.has_value(); });
  }
  impl_->context.TryCancel();
  impl_->reader.join();
}

void AgentSession::Send(v1::WorkerMessage message) {
  if (message.has_progress()) {
    impl_->writer->SendLatest(std::move(message));
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  if (!impl_->writer->Send(std::move(message), impl_->timeout)) impl_->context.TryCancel();
  impl_->blocked_ns += (std::chrono::steady_clock::now() - start).count();
}

absl::StatusOr<v1::WorkerCommand> AgentSession::Next(std::chrono::milliseconds timeout) {
  std::unique_lock lock(impl_->mutex);
  const bool woken = impl_->changed.wait_for(
      lock, timeout, [&] { return !impl_->commands.empty() || impl_->ended.has_value(); });
  if (!woken) return absl::DeadlineExceededError("no command within the time given");
  if (impl_->commands.empty()) return *impl_->ended;
  v1::WorkerCommand command = std::move(impl_->commands.front());
  impl_->commands.pop_front();
  impl_->changed.notify_all();
  return command;
}

absl::Status AgentSession::Flush(std::chrono::milliseconds timeout) {
  return impl_->writer->Flush(timeout);
}

double AgentSession::blocked_seconds() const {
  return static_cast<double>(impl_->blocked_ns.load()) * 1e-9;
}

}  // namespace paceline
