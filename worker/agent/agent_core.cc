#include "worker/agent/agent_core.h"

#include <algorithm>
#include <cstdio>
#include <set>

namespace paceline {
namespace {

constexpr std::size_t kEndedRunsMax = 64;
constexpr int kRecordsPatience = 2;  // heartbeats
constexpr int kStepsToLeave = 3;
constexpr std::int64_t kDefaultBudgetMs = 5000;  // until Registered names the run's own

v1::WorkerCommand AbortOf(const v1::GenerationKey& key, const std::string& reason) {
  v1::WorkerCommand command;
  *command.mutable_abort()->mutable_key() = key;
  command.mutable_abort()->set_reason(reason);
  return command;
}

v1::WorkerCommand ExitCommand() {
  v1::WorkerCommand command;
  command.mutable_exit();
  return command;
}

}  // namespace

AgentCore::AgentCore(std::string node_name, int slots, std::uint64_t incarnation,
                     std::string snapshot_root, const std::vector<FoundSnapshot>& found)
    : node_name_(std::move(node_name)),
      incarnation_(incarnation),
      snapshot_root_(std::move(snapshot_root)),
      slots_(slots),
      timeouts_(TimeoutsFor(kDefaultBudgetMs)),
      heartbeat_interval_(timeouts_.heartbeat),
      snapshots_(found),
      seats_(static_cast<std::size_t>(SeatsFor(slots))) {}

std::vector<AgentAction> AgentCore::Handle(const AgentEvent& event, Now now) {
  now_ = now;
  actions_.clear();
  std::visit([this](const auto& specific) { On(specific); }, event);
  StartWaiting();
  ExpireSnapshots();
  KeepWarm();
  TellHeld();
  EndIfIdle();
  return std::move(actions_);
}

SteadyTime AgentCore::NextDeadline() const {
  SteadyTime next = registered_ ? heartbeat_at_ : SteadyTime::max();
  if (!held_.empty()) next = std::min(next, held_.front().until);
  if (snapshots_until_.has_value()) next = std::min(next, *snapshots_until_);
  if (warm_due_.has_value()) next = std::min(next, *warm_due_);
  for (const auto& worker : seats_) {
    if (!worker.has_value()) continue;
    if (worker->settle_at.has_value()) next = std::min(next, *worker->settle_at);
    if (worker->kill_at.has_value()) next = std::min(next, *worker->kill_at);
    if (worker->idle_until.has_value()) next = std::min(next, *worker->idle_until);
  }
  return next;
}

// --- what the coordinator says ---

void AgentCore::On(const CoordinatorSaid& event) {
  const v1::CoordinatorMessage& message = event.message;
  if (message.epoch() < epoch_) {
    ++counters_.stale_messages;
    registered_ = false;
    held_.clear();
    Do(DropCoordinator{"its epoch " + std::to_string(message.epoch()) + " is over: epoch " +
                       std::to_string(epoch_) + " was seen"});
    return;
  }
  epoch_ = message.epoch();
  if (message.has_registered()) return OnRegistered(message.registered());
  if (!registered_) return;  // of a stream that is being dropped
  switch (message.body_case()) {
    case v1::CoordinatorMessage::kStart:
      return OnStart(message.start());
    case v1::CoordinatorMessage::kPeers:
      return OnPeers(message.peers());
    case v1::CoordinatorMessage::kWindowGrant:
      return OnGrant(message.window_grant());
    case v1::CoordinatorMessage::kStop:
      return OnStop(message.stop());
    case v1::CoordinatorMessage::kCheckpointCommitted:
      return OnCommitted(message.checkpoint_committed());
    case v1::CoordinatorMessage::kEnd:
      return OnEnd(message.end());
    case v1::CoordinatorMessage::kSelfTest:
      return OnSelfTest(message.self_test());
    case v1::CoordinatorMessage::kRelease:
      return EndWorkers(ExitCode::kDone, message.release().reason(), /*at_once=*/false);
    default:
      return;  // of a newer coordinator: it may not rely on what an old agent does not know
  }
}

void AgentCore::OnRegistered(const v1::Registered& registered) {
  registered_ = true;
  node_id_ = registered.node_id();
  ++counters_.registrations;
  if (registered.lease_ms() > 0) {
    timeouts_ = TimeoutsFor(registered.lease_ms() * 10 / 8);  // the lease is 8/10 of the budget
  }
  heartbeat_interval_ = registered.heartbeat_interval_ms() > 0
                            ? std::chrono::milliseconds(registered.heartbeat_interval_ms())
                            : timeouts_.heartbeat;
  held_.clear();
  for (v1::AgentMessage& message : outbox_.Pending()) {
    TellAfterRecords(std::move(message), /*repeat=*/true);
  }
  Heartbeat(/*newest_only=*/false);
}

absl::Status AgentCore::CheckStart(const v1::StartGeneration& start) const {
  if (start.run_dir().empty()) {
    return absl::InvalidArgumentError("StartGeneration.run_dir is empty: name the run's folder");
  }
  std::set<int> seen;
  for (const v1::RankAssignment& assignment : start.assignments()) {
    const int slot = assignment.slot();
    if (slot < 0 || slot >= slots_ || !seen.insert(slot).second) {
      return absl::InvalidArgumentError(
          "StartGeneration.assignments: slot " + std::to_string(slot) + " of rank " +
          std::to_string(assignment.rank()) + " is taken twice or not one of the " +
          std::to_string(slots_) + " of node " + node_name_);
    }
  }
  return absl::OkStatus();
}

void AgentCore::OnStart(const v1::StartGeneration& start) {
  if (ending_.has_value()) return;
  const Key key{start.key().run_id(), start.key().generation()};
  if (const auto known = generations_.find(key); known != generations_.end()) {
    return OnRepeat(known->second, start);
  }
  const auto newer = std::find_if(generations_.begin(), generations_.end(), [&](const auto& item) {
    return item.first.first == key.first && item.first.second > key.second;
  });
  const auto ended = ended_.find(key.first);
  if (newer != generations_.end() || (ended != ended_.end() && ended->second >= key.second)) {
    ++counters_.stale_messages;
    return TellGone(start.key());
  }
  std::vector<Key> older;
  for (const auto& [other, generation] : generations_) {
    if (other.first == key.first) older.push_back(other);
  }
  for (const Key& other : older) BeginEnd(other, "a newer generation of the run has begun");
  outbox_.OnStarted(start.key());
  if (snapshots_.OnStart(start)) Do(RemoveSnapshots{key.first});

  Generation generation;
  generation.start = start;
  generation.tokens = start.start_tokens();
  const absl::Status valid = CheckStart(start);
  if (!valid.ok()) {
    generation.phase = Phase::kRunning;  // without workers, until the coordinator ends it
    for (const v1::RankAssignment& assignment : start.assignments()) {
      TellFailed(key, assignment.rank(), valid);
    }
  } else {
    BeginFetching(generation);
  }
  generations_.emplace(key, std::move(generation));
}

// The coordinator repeats a start to a node that has come back. Windows granted meanwhile may
// stand in it alone.
void AgentCore::OnRepeat(const Generation& known, const v1::StartGeneration& start) {
  for (const v1::Window& window : start.windows()) {
    if (window.end_step() <= GrantedUntil(known)) continue;
    v1::WindowGrant grant;
    *grant.mutable_key() = start.key();
    *grant.mutable_window() = window;
    OnGrant(grant);
  }
}

void AgentCore::OnPeers(const v1::Peers& peers) {
  Generation* generation = FindRunning(peers.key());
  if (generation == nullptr || generation->peers.has_value()) return;  // a repeat
  generation->peers = peers;
  v1::WorkerCommand command;
  *command.mutable_peers() = peers;
  Broadcast(peers.key(), command);
}

void AgentCore::OnGrant(const v1::WindowGrant& grant) {
  const auto found = generations_.find({grant.key().run_id(), grant.key().generation()});
  if (found == generations_.end()) return;
  auto& windows = *found->second.start.mutable_windows();
  if (!windows.empty() && windows.rbegin()->end_step() == grant.window().first_step()) {
    windows.rbegin()->set_end_step(grant.window().end_step());
  } else if (windows.empty() || windows.rbegin()->end_step() < grant.window().end_step()) {
    *windows.Add() = grant.window();
  }
  outbox_.OnGranted(grant.key(), grant.window().end_step());
  v1::WorkerCommand command;
  *command.mutable_window_grant() = grant;
  Broadcast(grant.key(), command);
}

void AgentCore::OnStop(const v1::StopGeneration& stop) {
  const auto found = generations_.find({stop.key().run_id(), stop.key().generation()});
  if (found == generations_.end()) return;
  found->second.stop = stop;
  v1::WorkerCommand command;
  *command.mutable_stop() = stop;
  Broadcast(stop.key(), command);
}

void AgentCore::OnCommitted(const v1::CheckpointCommitted& committed) {
  outbox_.OnCommitted(committed.key().run_id(), committed.step());
  v1::WorkerCommand command;
  *command.mutable_checkpoint_committed() = committed;
  Broadcast(committed.key(), command);
}

void AgentCore::OnEnd(const v1::EndGeneration& end) {
  const Key key{end.key().run_id(), end.key().generation()};
  if (end.forget()) {
    for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
      const std::optional<Worker>& worker = seats_[seat];
      if (worker.has_value() && worker->idle && worker->key.first == key.first) {
        EndIdle(static_cast<int>(seat));
      }
    }
    OnForget(end.key());
  }
  if (!generations_.contains(key)) return TellGone(end.key());
  BeginEnd(key, end.reason());
}

void AgentCore::OnSelfTest(const v1::SelfTest& test) {
  if (ending_.has_value()) return;
  if (self_test_ == test.id()) return;  // told again
  if (self_test_.has_value()) {
    next_test_ = test;
    return;
  }
  self_test_ = test.id();
  Do(BeginSelfTest{test.id(), test.folder()});
}

void AgentCore::On(const SelfTested& event) {
  self_test_.reset();
  if (next_test_.has_value()) {  // nobody asks for this one any more
    const v1::SelfTest next = *std::exchange(next_test_, std::nullopt);
    return OnSelfTest(next);
  }
  if (!registered_) return;  // a coordinator that still wants to know asks again
  v1::AgentMessage message;
  message.set_incarnation(incarnation_);
  message.mutable_self_test_done()->set_id(event.id);
  message.mutable_self_test_done()->set_error(std::string(event.status.message()));
  message.mutable_self_test_done()->set_seconds(event.seconds);
  Do(TellCoordinator{std::move(message)});
}

void AgentCore::On(const CoordinatorLost& event) {
  registered_ = false;
  held_.clear();
  const absl::StatusCode code = event.reason.code();
  const std::string reason(event.reason.message());
  if (ending_.has_value()) return;
  if (code == absl::StatusCode::kFailedPrecondition) {
    EndWorkers(ExitCode::kRetry, "the coordinator refused this agent: " + reason,
               /*at_once=*/true);
    replaced_ = true;
    return;
  }
  // Before the first registration these are the operator's mistakes, and retrying would hide
  // them. Later they may be a coordinator that is just being replaced.
  const bool mistake = code == absl::StatusCode::kInvalidArgument ||
                       code == absl::StatusCode::kUnauthenticated ||
                       code == absl::StatusCode::kPermissionDenied;
  if (mistake && counters_.registrations == 0) {
    EndWorkers(ExitCode::kBadInput, "the coordinator refused this agent: " + reason,
               /*at_once=*/true);
  }
}

// --- generations ---

// The mean of the generation's steps on this node so far: a rank may compute as long before it
// looks up.
std::chrono::milliseconds AgentCore::StepTime(const Generation& generation) {
  double seconds = 0;
  for (const auto& [rank, view] : generation.ranks) {
    if (view.steps_done == 0) continue;
    seconds =
        std::max(seconds, view.progress.step_seconds() / static_cast<double>(view.steps_done));
  }
  // A worker that tells nonsense is killed after an hour all the same.
  return std::chrono::milliseconds(
      static_cast<std::int64_t>(std::clamp(seconds, 0.0, 3600.0) * 1e3));
}

void AgentCore::BeginEnd(const Key& key, const std::string& reason) {
  Generation& generation = generations_.at(key);
  if (generation.phase == Phase::kEnding) return;
  generation.phase = Phase::kEnding;
  Do(StopCopying{generation.start.key()});
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    std::optional<Worker>& worker = seats_[seat];
    if (!worker.has_value() || worker->key != key || worker->exit.has_value()) continue;
    if (!worker->session_open) {
      Do(KillWorker{static_cast<int>(seat)});  // it never began: nothing to abort or to flush
      continue;
    }
    if (worker->left) {
      BecomeIdle(static_cast<int>(seat));
      continue;
    }
    if (!worker->finished) {
      Do(TellWorker{static_cast<int>(seat), AbortOf(generation.start.key(), reason)});
    }
    if ((worker->failure_told && !worker->survives) || ending_.has_value()) {
      Do(TellWorker{static_cast<int>(seat), ExitCommand()});
    }
    worker->kill_at = now_.steady + timeouts_.shutdown + kStepsToLeave * StepTime(generation);
  }
  ForgetIfGone(key);
}

void AgentCore::ForgetIfGone(const Key& key) {
  const auto found = generations_.find(key);
  if (found == generations_.end() || found->second.phase != Phase::kEnding) return;
  for (const auto& worker : seats_) {
    if (worker.has_value() && worker->key == key && !worker->idle) return;
  }
  const v1::GenerationKey name = found->second.start.key();
  generations_.erase(found);
  ended_[key.first] = std::max(ended_[key.first], key.second);
  if (ended_.size() > kEndedRunsMax) {
    ended_.erase(ended_.begin()->first == key.first ? std::next(ended_.begin()) : ended_.begin());
  }
  ReleaseWarm(key.first);
  outbox_.OnEnded(name);
  TellGone(name);
}

void AgentCore::EndWorkers(ExitCode code, const std::string& reason, bool at_once) {
  if (!ending_.has_value()) ending_ = EndAgent{code, reason};
  std::vector<Key> keys;
  for (const auto& [key, generation] : generations_) keys.push_back(key);
  for (const Key& key : keys) BeginEnd(key, reason);
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    if (!seats_[seat].has_value()) continue;
    if (seats_[seat]->idle) EndIdle(static_cast<int>(seat));
    if (at_once) Do(KillWorker{static_cast<int>(seat)});
  }
}

void AgentCore::EndIfIdle() {
  const bool idle = std::none_of(seats_.begin(), seats_.end(),
                                 [](const auto& worker) { return worker.has_value(); });
  if (!ending_.has_value() || !idle || !held_.empty()) return;
  // They are the next agent's, where there is one.
  if (!replaced_) RemoveUnusedSnapshots();
  Do(*ending_);
}

void AgentCore::On(const ShutdownAsked& event) {
  if (ending_.has_value()) return EndWorkers(ending_->code, event.reason, /*at_once=*/true);
  bool interrupted = false;
  const std::string reason = "node " + node_name_ + " is being shut down: " + event.reason;
  for (auto& worker : seats_) {
    if (!worker.has_value() || worker->idle || worker->finished || worker->failure_told) continue;
    const auto generation = generations_.find(worker->key);
    if (generation->second.phase == Phase::kEnding) continue;
    interrupted = true;
    worker->failure_told = true;
    TellFailed(worker->key, worker->rank, absl::UnavailableError(reason));
  }
  EndWorkers(interrupted ? ExitCode::kRetry : ExitCode::kDone, reason, /*at_once=*/false);
}

void AgentCore::On(const Timer&) {
  for (std::size_t index = 0; index < seats_.size(); ++index) {
    std::optional<Worker>& worker = seats_[index];
    if (!worker.has_value()) continue;
    if (worker->kill_at.has_value() && *worker->kill_at <= now_.steady) {
      worker->kill_at.reset();
      Do(KillWorker{static_cast<int>(index)});
    }
    if (worker->idle_until.has_value() && *worker->idle_until <= now_.steady) {
      EndIdle(static_cast<int>(index));
    }
    if (!worker->settle_at.has_value() || *worker->settle_at > now_.steady) continue;
    worker->settle_at.reset();
    if (worker->exit.has_value()) {
      worker->session_open = false;
      SettleIfEnded(static_cast<int>(index));
    } else if (worker->failure.has_value()) {
      TellFailure(*worker);
    }
  }
  if (registered_ && heartbeat_at_ <= now_.steady) Heartbeat(/*newest_only=*/true);
}

// --- what the coordinator is told ---

void AgentCore::Tell(v1::AgentMessage message) {
  message.set_incarnation(incarnation_);
  outbox_.Add(message);
  if (registered_) TellAfterRecords(std::move(message), /*repeat=*/false);
}

void AgentCore::TellAfterRecords(v1::AgentMessage message, bool repeat) {
  if (message.has_ready() || message.has_window_request()) {  // no step led to them
    return Do(TellCoordinator{std::move(message)});
  }
  held_.push_back({std::move(message), repeat, records_appended_,
                   now_.steady + kRecordsPatience * heartbeat_interval_});
  TellHeld();
}

void AgentCore::TellHeld() {
  while (!held_.empty() &&
         (held_.front().record <= records_written_ || held_.front().until <= now_.steady)) {
    Held held = std::move(held_.front());
    held_.pop_front();
    const bool finished = held.message.has_finished();
    // The last step must not be told after what it led to.
    if (!held.repeat && !held.message.has_gone()) Heartbeat(/*newest_only=*/false);
    Do(TellCoordinator{std::move(held.message)});
    // The coordinator waits for what the node says after its rank has finished.
    if (finished) Heartbeat(/*newest_only=*/false);
  }
}

void AgentCore::Record(const Generation& generation, const char* file, std::int64_t step,
                       std::string line) {
  const bool again = generation.start.live() && step <= generation.start.start_step();
  Do(AppendRecord{generation.start.run_dir() + "/" + file, std::move(line), ++records_appended_,
                  again ? step : 0});
}

void AgentCore::On(const RecordWritten& event) {
  records_written_ = std::max(records_written_, event.number);
  if (!event.status.ok()) ++counters_.record_errors;
}

void AgentCore::TellGone(const v1::GenerationKey& key) {
  v1::AgentMessage message;
  *message.mutable_gone() = snapshots_.Held(key);
  for (const auto& worker : seats_) {
    if (!worker.has_value() || !worker->idle_until.has_value() || worker->held_step == 0 ||
        worker->key != Key{key.run_id(), key.generation()}) {
      continue;
    }
    v1::HeldState& held = *message.mutable_gone()->add_held();
    held.set_rank(worker->rank);
    held.set_step(worker->held_step);
  }
  Tell(std::move(message));
}

void AgentCore::TellFailed(const Key& key, std::int32_t rank, const absl::Status& status) {
  v1::AgentMessage message;
  v1::RankFailed& failed = *message.mutable_failed();
  failed.mutable_key()->set_run_id(key.first);
  failed.mutable_key()->set_generation(key.second);
  failed.set_rank(rank);
  failed.set_status_code(static_cast<int>(status.code()));
  failed.set_error(std::string(status.message()));
  failed.set_exit_code(-1);
  Tell(std::move(message));
}

void AgentCore::Heartbeat(bool newest_only) {
  if (!registered_) return;
  heartbeat_at_ = now_.steady + heartbeat_interval_;
  v1::AgentMessage message;
  message.set_incarnation(incarnation_);
  message.mutable_heartbeat()->set_sequence(++heartbeat_sequence_);
  for (const auto& [key, generation] : generations_) {
    // Those without progress and those that are ending too: they hold slots, and a coordinator
    // that has just come back plans with what it hears.
    v1::NodeProgress& progress = *message.mutable_heartbeat()->add_progress();
    *progress.mutable_key() = generation.start.key();
    for (const auto& [rank, view] : generation.ranks) {
      if (view.progress.step() > 0 || view.progress.operations_entered() > 0) {
        v1::RankProgress& told = *progress.add_ranks();
        told = view.progress;
        told.set_telemetry_age_ms(MillisecondsBetween(view.heard_at, now_.steady));
      }
      if (view.step.has_value()) {
        *progress.mutable_step() = *view.step;
        progress.set_tokens(generation.tokens);
      }
      if (view.eval.has_value()) *progress.mutable_eval() = *view.eval;
    }
  }
  Do(TellCoordinator{std::move(message), newest_only});
}

void AgentCore::Broadcast(const v1::GenerationKey& key, const v1::WorkerCommand& command) {
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    const std::optional<Worker>& worker = seats_[seat];
    if (!worker.has_value() || !worker->session_open) continue;
    if (worker->key != Key{key.run_id(), key.generation()}) continue;
    Do(TellWorker{static_cast<int>(seat), command});
  }
}

std::int64_t AgentCore::GrantedUntil(const Generation& generation) {
  std::int64_t until = 0;
  for (const v1::Window& window : generation.start.windows()) {
    until = std::max<std::int64_t>(until, window.end_step());
  }
  return until;
}

AgentCore::Generation* AgentCore::FindRunning(const v1::GenerationKey& key) {
  const auto found = generations_.find({key.run_id(), key.generation()});
  const bool running = found != generations_.end() && found->second.phase == Phase::kRunning;
  return running ? &found->second : nullptr;
}

AgentView AgentCore::View() const {
  AgentView view{.node = node_name_,
                 .slots = slots_,
                 .registered = registered_,
                 .node_id = node_id_,
                 .epoch = epoch_,
                 .counters = counters_};
  for (const auto& worker : seats_) {
    if (!worker.has_value()) continue;
    ++view.workers;
    view.warm_workers += worker->slot < 0 && worker->loaded && worker->session_open ? 1 : 0;
  }
  for (const auto& [key, generation] : generations_) {
    if (generation.phase != Phase::kRunning) continue;
    for (const auto& [rank, rank_view] : generation.ranks) view.ranks.push_back(rank_view);
  }
  return view;
}

}  // namespace paceline
