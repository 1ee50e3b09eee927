#include "coordinator/core/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/limits.h"

namespace paceline::core {
namespace {

// Runs that ended in one of the latest epochs have their last effects carried out again: a crash
// may have come between the fact and them, more than once.
constexpr std::uint64_t kEpochsToRepeat = 8;

// After a manifest could not be published.
constexpr std::chrono::seconds kPublishAgain{5};

// An event that comes later than this after a Tick's time tells that the process stood still.
constexpr std::chrono::milliseconds kTickLateness{500};

// What ran up while there was no coordinator is charged soon, so that one that dies over and over
// loses nothing of it.
constexpr std::chrono::milliseconds kFirstCharge{1000};

}  // namespace

Core::Core(CoreOptions options) : impl_(std::make_unique<Impl>(options)) {}
Core::~Core() = default;

absl::Status Core::Evolve(const v1::Fact& fact) { return impl_->state_.Evolve(fact); }

absl::Status Core::Restore(const v1::StateSnapshot& snapshot) {
  ASSIGN_OR_RETURN(impl_->state_, State::FromSnapshot(snapshot));
  return absl::OkStatus();
}

v1::StateSnapshot Core::Snapshot() const { return impl_->state_.ToSnapshot(); }
Decision Core::Open(Now now) { return impl_->Open(now); }
Decision Core::Decide(const Event& event, Now now) { return impl_->Decide(event, now); }
SteadyTime Core::NextDeadline() const { return impl_->NextDeadline(); }
const State& Core::state() const { return impl_->state_; }

Decision Core::Impl::Open(Now now) {
  now_ = now;
  opened_ = {now.steady, std::max(now.wall_ms, state_.at_ms)};
  next_charge_ = now.steady + std::min(options_.charge_interval, kFirstCharge);
  const std::uint64_t last_epoch = state_.epoch.value();
  v1::Fact opened;
  opened.mutable_epoch_opened()->set_epoch(options_.epoch.value());
  Emit(std::move(opened));
  for (const auto& [id, node] : state_.nodes) {
    if (!node.alive) continue;
    // Nothing is charged before it speaks; it has two leases' time to find its way back.
    nodes_[id] = {.last_heartbeat_ms = node.charged_until_ms, .heard = false};
    leases_.Grant(id, node.incarnation(), 2 * TimeoutsFor(BudgetOf(node)).lease, now.steady);
  }
  std::vector<std::string> run_ids;
  for (const auto& [id, run] : state_.runs) {
    if (run.ended() && run.ended_epoch.value() + kEpochsToRepeat < last_epoch) continue;
    run_ids.push_back(id);
  }
  for (const std::string& id : run_ids) {
    const Run& run = state_.runs.at(id);
    for (const v1::CheckpointDiscarded& checkpoint : run.discarded) {
      decision_.effects.push_back(RemovalOf(checkpoint));
    }
    for (const Checkpoint& checkpoint : run.checkpoints) {
      decision_.effects.push_back(PublishManifest{checkpoint.folder});
    }
    Sweep(run);
    Retire(run);
    if (run.ended()) {
      decision_.effects.push_back(WriteSummary{id});
    } else if (run.generation_open) {
      AddRuntime(run);
      GrantWindows(generations_.at(id), 0);
    } else if (run.generation >= run.first_generation || !run.stop_reason.empty()) {
      AfterGeneration(id);  // the crash came between the generation's end and what follows it
    } else {
      DiscardDamaged(run);
    }
  }
  return std::exchange(decision_, {});
}

Decision Core::Impl::Decide(const Event& event, Now now) {
  const SteadyTime last = std::exchange(now_, now).steady;
  // Ticks come on time unless this process stood still (stopped, swapped out, a slow disk). Then
  // what the nodes have said meanwhile may lie unread, and their silence says nothing.
  if (now_.steady - due_ > kTickLateness) Postpone(now_.steady - last);
  std::visit([this](const auto& e) { On(e); }, event);
  RetryDeferred();
  if (std::exchange(retry_plans_, false)) TryPlans();
  if (std::exchange(consider_moves_, false)) ConsiderMoves();
  due_ = NextDeadline();
  return std::exchange(decision_, {});
}

SteadyTime Core::Impl::NextDeadline() const {
  return std::min({leases_.Next(), run_deadlines_.Next(), plan_deadlines_.Next(), drains_.Next(),
                   tests_.Next(), publish_again_.Next(), next_charge_});
}

void Core::Impl::On(const AgentSaid& event) {
  const v1::AgentMessage& message = event.message;
  if (message.body_case() == v1::AgentMessage::kRegister) {
    OnRegister(event.session, message.register_());
    return;
  }
  const auto session = sessions_.find(event.session);
  if (session == sessions_.end()) {
    decision_.effects.push_back(CloseSession{
        event.session, absl::UnavailableError("this session is not registered; register again")});
    return;
  }
  const NodeId node = session->second;
  if (message.incarnation() != state_.nodes.at(node).info.incarnation()) return;
  // Whatever it says, it lives; what is charged counts heartbeats alone.
  leases_.Renew(node, Incarnation{message.incarnation()}, now_.steady).IgnoreError();
  switch (message.body_case()) {
    case v1::AgentMessage::kHeartbeat:
      return OnHeartbeat(node, message.heartbeat());
    case v1::AgentMessage::kReady:
      return OnReady(node, message.ready());
    case v1::AgentMessage::kCheckpointPart:
      return OnPart(node, message.checkpoint_part());
    case v1::AgentMessage::kCheckpointFailed:
      return OnCheckpointFailed(node, message.checkpoint_failed());
    case v1::AgentMessage::kWindowRequest:
      return OnWindowRequest(node, message.window_request());
    case v1::AgentMessage::kFinished:
      return OnFinished(node, message.finished());
    case v1::AgentMessage::kFailed:
      return OnFailed(node, message.failed());
    case v1::AgentMessage::kGone:
      return OnGone(node, message.gone());
    case v1::AgentMessage::kSelfTestDone:
      return OnSelfTestDone(node, message.self_test_done());
    case v1::AgentMessage::kRegister:
    case v1::AgentMessage::BODY_NOT_SET:
      break;  // a newer agent's message that this version does not know
  }
}

void Core::Impl::On(const SessionClosed& event) {
  const auto it = sessions_.find(event.session);
  if (it == sessions_.end()) return;
  const NodeId node = it->second;
  sessions_.erase(it);
  NodeRuntime& runtime = nodes_.at(node);
  runtime.session.reset();
  // Only a hint otherwise: its lease decides.
  if (runtime.released) return LoseNode(node, "released", absl::OkStatus(), /*failed=*/false);
  UpdateFree(node);
}

void Core::Impl::On(const SubmitRunCalled& event) { Submit(event.call, event.request); }

void Core::Impl::On(const StopRunCalled& event) {
  const std::string& run_id = event.request.run_id();
  const Run* run = state_.FindRun(run_id);
  if (run == nullptr) {
    return Answer(event.call,
                  absl::NotFoundError(absl::StrCat("run \"", Cut(run_id, kMaxNameBytes),
                                                   "\" is unknown; `paceline ps` lists the runs")));
  }
  // A repeat, also one that comes after the run was resumed, stops nothing.
  if (run->ended() || !run->stop_reason.empty() || run->HasRequest(event.request.request_id())) {
    return Answer(event.call, absl::OkStatus());
  }
  v1::Fact fact;
  fact.mutable_run_stop_requested()->set_run_id(run_id);
  fact.mutable_run_stop_requested()->set_request_id(Cut(event.request.request_id(), kMaxNameBytes));
  const std::string reason = Cut(event.request.reason(), kMaxErrorBytes);
  fact.mutable_run_stop_requested()->set_reason(reason.empty() ? "stopped by request" : reason);
  Emit(std::move(fact));
  Answer(event.call, absl::OkStatus());
  if (const auto it = generations_.find(run_id); it != generations_.end()) {
    v1::CoordinatorMessage stop;
    *stop.mutable_stop()->mutable_key() = it->second.key;
    stop.mutable_stop()->set_reason(run->stop_reason);
    SendToAll(it->second, stop);
  } else {
    AfterGeneration(run_id);
  }
}

void Core::Impl::On(const ManifestWritten& event) {
  const auto it = generations_.find(event.key.run_id());
  if (it == generations_.end() || it->second.key.generation() != event.key.generation()) return;
  GenerationRuntime& generation = it->second;
  const auto checkpoint = generation.checkpoints.find(event.step);
  if (checkpoint == generation.checkpoints.end() || !checkpoint->second.writing) return;
  if (event.status.ok()) {
    Commit(generation, event.step);
  } else {
    DiscardInFlight(generation, event.step,
                    absl::StrCat("it could not be committed: ",
                                 Cut(std::string(event.status.message()), kMaxErrorBytes)));
  }
  WriteNextManifest(generation);
  UpdateDeadline(event.key.run_id());
  SettleFinal(generation);
}

void Core::Impl::On(const Tick&) {
  const std::vector<NodeId> expired = leases_.ExpiredAt(now_.steady);
  if (!expired.empty() && now_.steady >= apart_until_ && leases_.MostAreSilent(now_.steady)) {
    apart_until_ = now_.steady + leases_.TtlOf(expired.back());
  }
  for (const NodeId node : expired) {
    const double silent = std::chrono::duration<double>(leases_.TtlOf(node)).count();
    const bool failed = !nodes_.at(node).released && now_.steady >= apart_until_;
    LoseNode(node,
             absl::StrCat("node ", state_.nodes.at(node).info.name(),
                          " was silent for its lease of ", silent, " s"),
             absl::UnavailableError("the node's lease ran out; register again"), failed);
  }
  for (const std::string& run_id : run_deadlines_.DueAt(now_.steady)) OnRunDeadline(run_id);
  for (const std::string& run_id : plan_deadlines_.DueAt(now_.steady)) {
    plan_deadlines_.Clear(run_id);
    const Run* run = state_.FindRun(run_id);
    if (run != nullptr && run->state == v1::RUN_STATE_WAITING) TryPlan(*run);
  }
  for (const NodeId node : tests_.DueAt(now_.steady)) OnTestDeadline(node);
  for (const NodeId node : drains_.DueAt(now_.steady)) {
    const v1::GenerationKey key = *nodes_.at(node).draining;
    Drain(node, key, "the generation is over; its workers should have ended by now");
  }
  for (const std::string& folder : publish_again_.DueAt(now_.steady)) {
    publish_again_.Clear(folder);
    const auto stands = [&folder](const auto& run) { return run.second.HasCommitted(folder); };
    if (std::any_of(state_.runs.begin(), state_.runs.end(), stands)) {
      decision_.effects.push_back(PublishManifest{folder});
    }
  }
  if (now_.steady < next_charge_) return;
  next_charge_ = now_.steady + options_.charge_interval;
  for (const auto& [id, run] : state_.runs) {
    if (!run.ended()) ChargeAll(run.nodes);
  }
}

void Core::Impl::Postpone(SteadyTime::duration late) {
  for (auto& [node, runtime] : nodes_) {
    leases_.Grant(node, state_.nodes.at(node).incarnation(), leases_.TtlOf(node), now_.steady);
    runtime.draining_since += late;
  }
  for (auto& [run_id, generation] : generations_) {
    generation.startup_deadline += late;
    generation.failure_deadline += late;
    generation.final_deadline += late;
    for (auto& [step, checkpoint] : generation.checkpoints) checkpoint.deadline += late;
    UpdateDeadline(run_id);
  }
  for (auto& [run_id, since] : waiting_since_) since += late;
  plan_deadlines_.Postpone(late);
  tests_.Postpone(late);
  drains_.Postpone(late);
}

void Core::Impl::On(const PublishFailed& event) {
  publish_again_.Set(event.folder, now_.steady + kPublishAgain);
}

void Core::Impl::Emit(v1::Fact fact) {
  fact.set_index(state_.index + 1);
  fact.set_at_ms(std::max(state_.at_ms, WallMs(now_)));
  const absl::Status evolved = state_.Evolve(fact);
  PACELINE_CHECK(evolved.ok());  // a decision that does not follow from the state is a defect
  decision_.facts.push_back(std::move(fact));
}

std::int64_t Core::Impl::WallMs(Now now) const {
  return opened_.wall_ms +
         std::chrono::duration_cast<std::chrono::milliseconds>(now.steady - opened_.steady).count();
}

void Core::Impl::Send(NodeId node, v1::CoordinatorMessage message) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end() || !it->second.session) return;  // it is told when it reconnects
  message.set_epoch(state_.epoch.value());
  decision_.effects.push_back(SendToAgent{*it->second.session, std::move(message)});
}

void Core::Impl::SendToAll(const GenerationRuntime& generation,
                           const v1::CoordinatorMessage& message) {
  for (const auto& [node, ranks] : generation.ranks_of) Send(node, message);
}

void Core::Impl::Answer(CallId call, absl::Status status, const std::string& run_id) {
  decision_.effects.push_back(AnswerCall{call, std::move(status), run_id});
}

}  // namespace paceline::core
