// A coordinator for one agent, led by a test: it registers the agent, keeps what it says, and
// sends what the test tells it to.
// Threading: the test's thread calls; gRPC's threads serve.
#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "paceline/v1/coordinator.grpc.pb.h"

namespace paceline {

class FakeCoordinator : public v1::Coordinator::Service {
 public:
  explicit FakeCoordinator(std::uint64_t epoch, std::string token, std::int64_t lease_ms = 800)
      : epoch_(epoch), token_(std::move(token)), lease_ms_(lease_ms) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeCoordinator() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // The next message of kind `body`, those of other kinds before it being dropped.
  std::optional<v1::AgentMessage> Await(v1::AgentMessage::BodyCase body,
                                        std::chrono::milliseconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    std::unique_lock lock(mutex_);
    while (true) {
      while (!said_.empty()) {
        v1::AgentMessage message = std::move(said_.front());
        said_.pop_front();
        if (message.body_case() == body) return message;
      }
      if (changed_.wait_until(lock, deadline) == std::cv_status::timeout) return std::nullopt;
    }
  }

  void Send(v1::CoordinatorMessage message) {
    const std::lock_guard lock(mutex_);
    message.set_epoch(epoch_);
    if (stream_ != nullptr) stream_->Write(message);
  }

  // Ends the agent's session: a newer incarnation has replaced it.
  void Refuse() {
    const std::lock_guard lock(mutex_);
    refused_ = true;
    if (context_ != nullptr) context_->TryCancel();
    changed_.notify_all();
  }

  int sessions() {
    const std::lock_guard lock(mutex_);
    return sessions_;
  }

 private:
  using Stream = grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::AgentMessage>;

  grpc::Status AgentSession(grpc::ServerContext* context, Stream* stream) override {
    const auto authorization = context->client_metadata().find("authorization");
    if (authorization == context->client_metadata().end() ||
        authorization->second != "Bearer " + token_) {
      return {grpc::StatusCode::UNAUTHENTICATED, "wrong token"};
    }
    v1::AgentMessage message;
    if (!stream->Read(&message)) return grpc::Status::CANCELLED;
    {
      const std::lock_guard lock(mutex_);
      ++sessions_;
      if (refused_) return {grpc::StatusCode::FAILED_PRECONDITION, "replaced"};
      said_.push_back(message);
      stream_ = stream;
      context_ = context;
      v1::CoordinatorMessage registered;
      registered.set_epoch(epoch_);
      registered.mutable_registered()->set_node_id(1);
      registered.mutable_registered()->set_heartbeat_interval_ms(100);
      registered.mutable_registered()->set_lease_ms(lease_ms_);
      stream->Write(registered);
      changed_.notify_all();
    }
    while (stream->Read(&message)) {
      const std::lock_guard lock(mutex_);
      if (said_.size() < 100000) said_.push_back(message);
      changed_.notify_all();
    }
    const std::lock_guard lock(mutex_);
    stream_ = nullptr;
    context_ = nullptr;
    return grpc::Status::OK;
  }

  const std::uint64_t epoch_;
  const std::string token_;
  const std::int64_t lease_ms_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::AgentMessage> said_;
  Stream* stream_ = nullptr;
  grpc::ServerContext* context_ = nullptr;
  bool refused_ = false;
  int sessions_ = 0;
};

}  // namespace paceline
