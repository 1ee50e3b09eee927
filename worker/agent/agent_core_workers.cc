// AgentCore's second part: what workers say, and how they end.
#include <algorithm>
#include <utility>

#include "common/protocol.h"
#include "worker/agent/agent_core.h"
#include "worker/agent/records.h"
#include "worker/agent/snapshot_folder.h"

namespace paceline {
namespace {

// The generation and rank that a relayed message speaks for; null: it names none.
const v1::GenerationKey* KeyOf(const v1::WorkerMessage& message) {
  switch (message.body_case()) {
    case v1::WorkerMessage::kReady:
      return &message.ready().key();
    case v1::WorkerMessage::kCheckpointPart:
      return &message.checkpoint_part().key();
    case v1::WorkerMessage::kCheckpointFailed:
      return &message.checkpoint_failed().key();
    case v1::WorkerMessage::kWindowRequest:
      return &message.window_request().key();
    case v1::WorkerMessage::kFinished:
      return &message.finished().key();
    case v1::WorkerMessage::kFailed:
      return &message.failed().key();
    case v1::WorkerMessage::kLeft:
      return &message.left().key();
    case v1::WorkerMessage::kSnapshot:
      return &message.snapshot().key();
    default:
      return nullptr;
  }
}

absl::StatusCode CodeOf(const ProcessExit& exit) {
  if (exit.signal != 0 || !exit.known()) return absl::StatusCode::kUnavailable;
  switch (static_cast<ExitCode>(exit.exit_code)) {
    case ExitCode::kBadInput:
      return absl::StatusCode::kInvalidArgument;
    case ExitCode::kRetry:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

AgentCore::Worker* AgentCore::FindWorker(int seat) {
  if (seat < 0 || seat >= static_cast<int>(seats_.size())) return nullptr;
  std::optional<Worker>& worker = seats_[static_cast<std::size_t>(seat)];
  return worker.has_value() ? &*worker : nullptr;
}

void AgentCore::On(const WorkerSaid& event) {
  Worker* worker = FindWorker(event.seat);
  if (worker == nullptr) return;
  if (event.message.has_hello()) return OnHello(event.seat, event.session, event.message.hello());
  if (worker->session != event.session) return;
  if (event.message.has_warm()) {
    worker->loaded = true;
    worker->heard_at = now_.steady;
  }
  if (worker->idle) return;
  const v1::GenerationKey* key = KeyOf(event.message);
  if (key != nullptr && Key{key->run_id(), key->generation()} != worker->key) {
    ++counters_.stale_messages;
    return;
  }
  if (event.message.has_left()) return OnLeft(event.seat, event.message.left());
  if (event.message.has_snapshot()) {  // the one under way becomes whole after the end as well
    std::vector<SnapshotFiles> stale =
        snapshots_.OnTaken(*key, worker->rank, event.message.snapshot().step());
    if (!stale.empty()) Do(RemoveSnapshotFiles{key->run_id(), std::move(stale)});
    return;
  }
  Generation* generation = FindRunning(generations_.at(worker->key).start.key());
  if (generation == nullptr) {
    worker->finished |= event.message.has_finished();  // its end crossed the generation's
    return;
  }
  switch (event.message.body_case()) {
    case v1::WorkerMessage::kProgress:
      return OnProgress(*worker, *generation, event.message.progress());
    case v1::WorkerMessage::kStep:
      return OnStep(*worker, *generation, event.message.step());
    case v1::WorkerMessage::kEval:
      if (worker->rank != 0) return;
      generation->ranks[0].key = generation->start.key();
      generation->ranks[0].eval = event.message.eval();
      return Record(*generation, "evals.jsonl", event.message.eval().step(),
                    EvalLine(event.message.eval(), worker->key.second));
    case v1::WorkerMessage::kWindowRequest:
      return OnWindowRequest(*generation, event.message.window_request());
    case v1::WorkerMessage::kFailed:
      return OnFailed(*worker, event.message.failed(), event.stderr_tail);
    default:
      return Relay(*worker, event.message);
  }
}

void AgentCore::OnStep(const Worker& worker, Generation& generation, const v1::StepRecord& step) {
  if (worker.rank != 0) return;
  // start_tokens holds the steps up to start_step, of which some may be told again.
  const std::int64_t behind = generation.start.start_step() - step.step();
  if (behind < 0) generation.tokens += step.tokens();
  const std::int64_t tokens = generation.tokens - std::max<std::int64_t>(behind, 0) * step.tokens();
  RankView& view = generation.ranks[0];
  view.key = generation.start.key();
  if (!view.step.has_value() || step.step() > view.step->step()) view.step = step;
  Record(generation, "steps.jsonl", step.step(), StepLine(step, tokens, worker.key.second));
}

void AgentCore::OnHello(int seat, std::uint64_t session, const v1::WorkerHello& hello) {
  Worker& worker = *FindWorker(seat);
  if (worker.session != 0) return Do(KillWorker{seat});  // it has said so before
  worker.session = session;
  worker.session_open = true;
  const bool same_release = hello.protocol_version() == kWorkerProtocolVersion;
  if (worker.slot < 0) return OnWarmHello(seat, same_release);
  Generation* generation = FindRunning(generations_.at(worker.key).start.key());
  if (generation == nullptr) return Do(KillWorker{seat});
  if (!same_release) {
    worker.failure_told = true;
    TellFailed(worker.key, worker.rank,
               absl::FailedPreconditionError("the worker speaks protocol version " +
                                             std::to_string(hello.protocol_version()) +
                                             ", the agent of node " + node_name_ + " speaks " +
                                             std::to_string(kWorkerProtocolVersion) +
                                             ": install agent and worker of one release"));
    return Do(KillWorker{seat});
  }
  TellStart(seat, *generation);
}

// With what was said to the whole generation before.
void AgentCore::TellStart(int seat, const Generation& generation) {
  const Worker& worker = *FindWorker(seat);
  const v1::StartGeneration& start = generation.start;
  v1::WorkerCommand command;
  v1::RankStart& rank_start = *command.mutable_start();
  *rank_start.mutable_key() = start.key();
  rank_start.set_rank(worker.rank);
  *rank_start.mutable_layout() = start.layout();
  rank_start.set_run_file(start.run_file());
  rank_start.set_checkpoint(start.checkpoint());
  rank_start.set_start_step(start.start_step());
  *rank_start.mutable_windows() = start.windows();
  rank_start.set_corpus_digest(start.corpus_digest());
  rank_start.set_log_path(worker.log_path);
  if (!snapshot_root_.empty()) {
    rank_start.set_snapshot_folder(
        SnapshotFolder(snapshot_root_, start.key().run_id(), node_name_));
  }
  rank_start.set_live(start.live());
  TellSource(start, rank_start);
  *rank_start.mutable_transfers() = start.transfers();
  Do(TellWorker{seat, std::move(command)});
  if (generation.peers.has_value()) {
    v1::WorkerCommand peers;
    *peers.mutable_peers() = *generation.peers;
    Do(TellWorker{seat, std::move(peers)});
  }
  if (generation.stop.has_value()) {
    v1::WorkerCommand stop;
    *stop.mutable_stop() = *generation.stop;
    Do(TellWorker{seat, std::move(stop)});
  }
}

void AgentCore::OnProgress(const Worker& worker, Generation& generation,
                           const v1::RankProgress& progress) {
  if (progress.rank() != worker.rank) return;
  RankView& view = generation.ranks[worker.rank];
  view.key = generation.start.key();
  if (progress.step() > view.progress.step()) view.last_step_at_ms = now_.wall_ms;
  view.progress = progress;
  view.heard_at = now_.steady;
  view.steps_done = std::max<std::int64_t>(0, progress.step() - generation.start.start_step());
}

void AgentCore::OnWindowRequest(Generation& generation, const v1::WindowRequest& request) {
  if (request.until_step() <= GrantedUntil(generation)) return;
  // The ranks of a node step together and ask for the same windows: one question is enough,
  // but one that is repeated later may mean that the first was lost.
  if (request.until_step() <= generation.windows_asked &&
      now_.steady < generation.windows_asked_at + heartbeat_interval_) {
    return;
  }
  generation.windows_asked = std::max(generation.windows_asked, request.until_step());
  generation.windows_asked_at = now_.steady;
  v1::AgentMessage message;
  *message.mutable_window_request() = request;
  Tell(std::move(message));
}

void AgentCore::Relay(Worker& worker, const v1::WorkerMessage& said) {
  v1::AgentMessage message;
  switch (said.body_case()) {
    case v1::WorkerMessage::kReady:
      worker.ready = true;
      *message.mutable_ready() = said.ready();
      break;
    case v1::WorkerMessage::kCheckpointPart:
      *message.mutable_checkpoint_part() = said.checkpoint_part();
      break;
    case v1::WorkerMessage::kCheckpointFailed:
      *message.mutable_checkpoint_failed() = said.checkpoint_failed();
      break;
    case v1::WorkerMessage::kFinished:
      worker.finished = true;
      *message.mutable_finished() = said.finished();
      break;
    default:
      return;
  }
  Tell(std::move(message));
}

// The exit code, the signal and the rest of stderr follow in a moment, when the process ends:
// they are waited for, so that the coordinator hears one failure and not two.
void AgentCore::OnFailed(Worker& worker, v1::RankFailed failed,
                         std::vector<std::string> stderr_tail) {
  if (worker.failure_told || worker.failure.has_value()) return;
  const bool survives = failed.survives();
  worker.failure = std::move(failed);
  worker.stderr_tail = std::move(stderr_tail);
  worker.survives = survives;
  if (survives) return TellFailure(worker);  // no end follows
  worker.settle_at = now_.steady + heartbeat_interval_;
}

void AgentCore::OnLeft(int seat, const v1::RankLeft& left) {
  Worker& worker = *FindWorker(seat);
  if (worker.exit.has_value() || !worker.session_open) return;
  worker.left = true;
  worker.held_step = left.held_step();
  if (generations_.at(worker.key).phase != Phase::kEnding) return;
  BecomeIdle(seat);
  ForgetIfGone(worker.key);
}

void AgentCore::BecomeIdle(int seat) {
  Worker& worker = *FindWorker(seat);
  worker.idle = true;
  worker.kill_at.reset();
  worker.settle_at.reset();
  worker.idle_until = now_.steady + kIdleLimit;
  const auto generation = generations_.find(worker.key);
  const bool wanted = generation == generations_.end() || !generation->second.forgotten;
  if (ending_.has_value() || !wanted) EndIdle(seat);
}

void AgentCore::EndIdle(int seat) {
  Worker& worker = *FindWorker(seat);
  if (!worker.idle_until.has_value()) return;  // told already
  worker.idle_until.reset();
  if (worker.slot < 0) return Do(KillWorker{seat});  // it holds nothing
  v1::WorkerCommand command;
  command.mutable_exit();
  Do(TellWorker{seat, std::move(command)});
  worker.kill_at = now_.steady + timeouts_.shutdown;
}

void AgentCore::On(const WorkerSessionClosed& event) {
  Worker* worker = FindWorker(event.seat);
  if (worker == nullptr || worker->session != event.session) return;
  worker->session_open = false;
  // A worker without its session can do nothing more; it ends by itself or is ended.
  if (!worker->exit.has_value() && !worker->kill_at.has_value()) {
    worker->kill_at = now_.steady + timeouts_.shutdown;
  }
  SettleIfEnded(event.seat);
}

void AgentCore::On(const WorkerExited& event) {
  Worker* worker = FindWorker(event.seat);
  if (worker == nullptr || worker->exit.has_value()) return;
  worker->exit = event.exit;
  worker->stderr_tail = event.stderr_tail;
  worker->kill_at.reset();
  worker->idle_until.reset();
  // The exit may have overtaken the worker's last words, which lie in the socket. The session's
  // end comes after them; the timer covers a session that something else holds open.
  worker->settle_at = now_.steady + heartbeat_interval_;
  SettleIfEnded(event.seat);
}

void AgentCore::On(const WorkerNotSpawned& event) {
  Worker* worker = FindWorker(event.seat);
  if (worker == nullptr) return;
  if (worker->slot < 0) return OnWarmEnded(event.seat);
  const Key key = worker->key;
  const std::int32_t rank = worker->rank;
  seats_[static_cast<std::size_t>(event.seat)].reset();
  if (generations_.at(key).phase != Phase::kRunning) {
    ++counters_.workers_ended;
  } else {
    ++counters_.workers_failed;
    TellFailed(key, rank, Annotate(event.reason, "starting the worker on node " + node_name_));
  }
  ForgetIfGone(key);
}

void AgentCore::SettleIfEnded(int seat) {
  Worker& worker = *FindWorker(seat);
  if (!worker.exit.has_value() || worker.session_open) return;
  if (worker.slot < 0) return OnWarmEnded(seat);
  const Key key = worker.key;
  const bool held = worker.idle && worker.held_step > 0;
  if (worker.finished && (worker.exit->clean() || !worker.exit->known())) {
    ++counters_.workers_finished;
  } else if (worker.idle || generations_.at(key).phase != Phase::kRunning) {
    ++counters_.workers_ended;
  } else {
    ++counters_.workers_failed;
    // What a rank did stands once it has finished, however its process ends.
    if (!worker.finished && !worker.failure_told) TellFailure(worker);
  }
  seats_[static_cast<std::size_t>(seat)].reset();
  ForgetIfGone(key);
  if (!held) return;
  v1::GenerationKey name;  // what is held of it is told anew
  name.set_run_id(key.first);
  name.set_generation(key.second);
  TellGone(name);
}

void AgentCore::TellFailure(Worker& worker) {
  v1::RankFailed failed = worker.failure.value_or(v1::RankFailed());
  if (!worker.failure.has_value()) {
    *failed.mutable_key() = generations_.at(worker.key).start.key();
    failed.set_status_code(static_cast<int>(CodeOf(*worker.exit)));
    failed.set_error("the worker of rank " + std::to_string(worker.rank) + " on node " +
                     node_name_ + " ended with " + ToString(*worker.exit) +
                     " before its rank had finished");
  }
  failed.set_rank(worker.rank);
  failed.set_exit_code(worker.exit.has_value() ? worker.exit->exit_code : -1);
  failed.set_signal(worker.exit.has_value() ? worker.exit->signal : 0);
  failed.clear_stderr_tail();
  for (std::string& line : worker.stderr_tail) failed.add_stderr_tail(std::move(line));
  worker.failure.reset();
  worker.failure_told = true;
  v1::AgentMessage message;
  *message.mutable_failed() = std::move(failed);
  Tell(std::move(message));
}

}  // namespace paceline
