#include "coordinator/rpc/agent_service.h"

#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/rpc/grpc_status.h"

namespace paceline {
namespace {

// One agent's stream.
//   kOpen -> kClosing   Close was called: queued messages still leave, nothing more is taken
//   kOpen, kClosing -> kFinished   Finish was called; gRPC says OnDone, and the session is gone
// The lock is held over Start* and Finish: they only queue, reactions run on gRPC's own threads,
// and so no operation can begin after Finish.
class Session : public grpc::ServerBidiReactor<v1::AgentMessage, v1::CoordinatorMessage>,
                public SessionPeer,
                public std::enable_shared_from_this<Session> {
 public:
  Session(core::SessionId id, Loop& loop, Connections& connections,
          grpc::CallbackServerContext* context)
      : id_(id), loop_(loop), connections_(connections), context_(context) {}

  // From here until OnDone gRPC holds the session too.
  void Begin() {
    self_ = shared_from_this();
    const absl::Status added = connections_.AddSession(id_, self_);
    if (added.ok()) {
      ReadNext();
    } else {
      Close(added);
    }
  }

  void ReadNext() {
    const std::lock_guard lock(mutex_);
    if (state_ == State::kOpen) StartRead(&incoming_);
  }

  void Send(const v1::CoordinatorMessage& message) override {
    const std::lock_guard lock(mutex_);
    if (state_ != State::kOpen) return;
    if (outgoing_.size() >= AgentService::kOutgoingMax) {
      outgoing_.erase(outgoing_.begin() + 1, outgoing_.end());  // The first is being written.
      CloseLocked(absl::ResourceExhaustedError(
          absl::StrCat("the agent reads too slowly: ", AgentService::kOutgoingMax,
                       " messages wait for it; connect again")));
      context_->TryCancel();  // The write under way may never end by itself.
      return;
    }
    outgoing_.push_back(message);
    if (outgoing_.size() == 1) StartWrite(&outgoing_.front());
  }

  void Close(const absl::Status& reason) override {
    const std::lock_guard lock(mutex_);
    CloseLocked(reason);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {  // The agent said its last word, or is gone.
      Close(absl::OkStatus());
      return;
    }
    loop_.Post(core::AgentSaid{id_, std::move(incoming_)}, [session = weak_from_this()] {
      if (const auto still_there = session.lock()) still_there->ReadNext();
    });
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    outgoing_.pop_front();
    if (!ok) {
      outgoing_.clear();
      CloseLocked(absl::UnavailableError("the agent is gone"));
    } else if (!outgoing_.empty()) {
      StartWrite(&outgoing_.front());
    }
    FinishIfIdle();
  }

  void OnCancel() override { Close(absl::CancelledError("the agent ended the call")); }

  void OnDone() override {
    loop_.Post(core::SessionClosed{id_});
    connections_.RemoveSession(id_);
    const std::shared_ptr<Session> last = std::move(self_);  // Destroys this at the very end.
  }

 private:
  enum class State { kOpen, kClosing, kFinished };

  void CloseLocked(const absl::Status& reason) {
    if (state_ != State::kOpen) return;
    state_ = State::kClosing;
    reason_ = reason;
    FinishIfIdle();
  }

  void FinishIfIdle() {
    if (state_ != State::kClosing || !outgoing_.empty()) return;
    state_ = State::kFinished;
    Finish(ToGrpc(reason_));
  }

  const core::SessionId id_;
  Loop& loop_;
  Connections& connections_;
  grpc::CallbackServerContext* const context_;  // lives until OnDone
  std::shared_ptr<Session> self_;
  v1::AgentMessage incoming_;  // gRPC's between StartRead and OnReadDone
  std::mutex mutex_;
  State state_ = State::kOpen;
  absl::Status reason_;
  std::deque<v1::CoordinatorMessage> outgoing_;  // the first is being written
};

}  // namespace

grpc::ServerBidiReactor<v1::AgentMessage, v1::CoordinatorMessage>* AgentService::AgentSession(
    grpc::CallbackServerContext* context) {
  const auto session =
      std::make_shared<Session>(connections_.NextSession(), loop_, connections_, context);
  session->Begin();
  return session.get();
}

}  // namespace paceline
