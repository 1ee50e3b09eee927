#include "worker/agent/coordinator_link.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <utility>

#include "common/files.h"
#include "common/timeouts.h"
#include "common/token.h"
#include "paceline/v1/coordinator.grpc.pb.h"
#include "worker/agent/stream_writer.h"

namespace paceline {
namespace {

constexpr std::size_t kMessagesMax = 4096;
constexpr std::chrono::milliseconds kFirstPause{20};
// How often a stream that is up looks whether the coordinator has moved.
constexpr std::chrono::milliseconds kWatchInterval{500};

using Stream = grpc::ClientReaderWriter<v1::AgentMessage, v1::CoordinatorMessage>;
using Writer = StreamWriter<v1::AgentMessage>;

absl::StatusOr<std::string> AddressIn(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 16));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("address") || !json["address"].is_string()) {
    return absl::UnavailableError(path + ": no \"address\" in it yet");
  }
  return json["address"].get<std::string>();
}

absl::Status ToAbsl(const grpc::Status& status) {
  if (status.ok()) return absl::UnavailableError("the coordinator ended the session");
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

}  // namespace

struct CoordinatorLink::Impl {
  struct Session {
    grpc::ClientContext context;
    std::unique_ptr<v1::Coordinator::Stub> stub;
    std::unique_ptr<Stream> stream;
    std::unique_ptr<Writer> writer;
  };

  void Run();
  absl::StatusOr<std::string> Address() const;
  bool AwaitReady(grpc::Channel& channel);
  absl::Status RunOneSession(std::atomic<bool>& registered);
  void Watch(const std::string& address, const std::atomic<bool>& registered, Session& session);
  bool Pause(std::chrono::milliseconds pause);
  std::shared_ptr<Session> Present() {
    const std::lock_guard lock(mutex);
    return session;
  }

  CoordinatorLinkOptions options;
  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  std::shared_ptr<Session> session;  // shared with a Send that has just looked it up
  std::thread thread;
};

absl::StatusOr<std::string> CoordinatorLink::Impl::Address() const {
  if (!options.coordinator_file.empty()) return AddressIn(options.coordinator_file);
  return options.address;
}

// Waits, unless the link is to stop: then false.
bool CoordinatorLink::Impl::Pause(std::chrono::milliseconds pause) {
  std::unique_lock lock(mutex);
  return !changed.wait_for(lock, pause, [&] { return stopping; });
}

// False: refused, or not within the time. WaitForConnected would go on after a refusal, at
// gRPC's own pace.
bool CoordinatorLink::Impl::AwaitReady(grpc::Channel& channel) {
  const auto deadline = std::chrono::system_clock::now() + kConnectLimit;
  while (std::chrono::system_clock::now() < deadline) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) return false;
    {
      const std::lock_guard lock(mutex);
      if (stopping) return false;
    }
    channel.WaitForStateChange(state,
                               std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  }
  return false;
}

// A coordinator that was stopped, or whose machine has vanished, never ends its stream; but the
// one that takes its place writes another address.
void CoordinatorLink::Impl::Watch(const std::string& address, const std::atomic<bool>& registered,
                                  Session& watched) {
  const auto give_up = std::chrono::steady_clock::now() + kRegisterLimit;
  std::unique_lock lock(mutex);
  while (!changed.wait_for(lock, kWatchInterval,
                           [&] { return stopping || session.get() != &watched; })) {
    lock.unlock();
    const absl::StatusOr<std::string> now = Address();
    const bool moved = now.ok() && *now != address;
    const bool silent = !registered && std::chrono::steady_clock::now() > give_up;
    if (moved || silent) watched.context.TryCancel();
    lock.lock();
  }
}

absl::Status CoordinatorLink::Impl::RunOneSession(std::atomic<bool>& registered) {
  ASSIGN_OR_RETURN(const std::string address, Address());
  auto current = std::make_shared<Session>();
  if (!options.token_file.empty()) {
    ASSIGN_OR_RETURN(const std::string token, ReadToken(options.token_file));
    current->context.AddMetadata("authorization", BearerOf(token));
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kControlMessageBytesMax);
  arguments.SetMaxSendMessageSize(kControlMessageBytesMax);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(kKeepalive.count()));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(kKeepalive.count()));
  // A channel shared between attempts would keep its own, longer, pause after a failure.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  if (!AwaitReady(*channel)) {
    return absl::UnavailableError("no coordinator answers at " + address);
  }
  current->stub = v1::Coordinator::NewStub(channel);
  current->stream = current->stub->AgentSession(&current->context);
  current->writer = std::make_unique<Writer>(
      [stream = current->stream.get()](const v1::AgentMessage& message) {
        return stream->Write(message);
      },
      kMessagesMax);
  current->writer->Send(options.registration);
  {
    const std::lock_guard lock(mutex);
    if (stopping) current->context.TryCancel();
    session = current;
  }
  std::thread watcher([&] { Watch(address, registered, *current); });
  v1::CoordinatorMessage message;
  while (current->stream->Read(&message)) {
    if (message.has_registered()) registered = true;
    options.on_message(std::move(message));
  }
  {
    const std::lock_guard lock(mutex);
    session.reset();
    changed.notify_all();
  }
  watcher.join();
  current->writer->Close();
  return ToAbsl(current->stream->Finish());
}

void CoordinatorLink::Impl::Run() {
  std::minstd_rand random(std::random_device{}());
  std::chrono::milliseconds pause = kFirstPause;
  while (true) {
    std::atomic<bool> registered{false};
    options.on_lost(RunOneSession(registered));
    if (registered) pause = kFirstPause;
    // Between half and the whole: agents that lost one coordinator together do not come back
    // together.
    const std::chrono::milliseconds jittered =
        pause / 2 + pause * static_cast<int>(random() % 1000) / 2000;
    if (!Pause(jittered)) return;
    pause = std::min(pause * 2, std::max(options.reconnect_max(), kFirstPause));
  }
}

CoordinatorLink::CoordinatorLink(CoordinatorLinkOptions options) : impl_(new Impl) {
  impl_->options = std::move(options);
  impl_->thread = std::thread([impl = impl_.get()] { impl->Run(); });
}

CoordinatorLink::~CoordinatorLink() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->changed.notify_all();
    if (impl_->session != nullptr) impl_->session->context.TryCancel();
  }
  impl_->thread.join();
}

void CoordinatorLink::Send(v1::AgentMessage message, bool newest_only) {
  const auto session = impl_->Present();
  if (session == nullptr) return;
  if (newest_only) return session->writer->SendLatest(std::move(message));
  // A full queue means that the coordinator has stopped reading; the outbox has what matters.
  if (!session->writer->Send(std::move(message))) session->context.TryCancel();
}

void CoordinatorLink::Drop() {
  if (const auto session = impl_->Present()) session->context.TryCancel();
}

void CoordinatorLink::Finish(std::chrono::milliseconds timeout) {
  const auto session = impl_->Present();
  if (session == nullptr) return;
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  if (!session->writer->Flush(timeout).ok()) return;
  // A cancelled stream may lose what the coordinator has not read yet: say the end, and wait
  // for it to be answered.
  session->writer->Close();
  session->stream->WritesDone();
  std::unique_lock lock(impl_->mutex);
  impl_->stopping = true;  // no stream is made any more
  impl_->changed.notify_all();
  impl_->changed.wait_until(lock, deadline, [&] { return impl_->session != session; });
}

}  // namespace paceline
