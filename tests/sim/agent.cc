#include "tests/sim/agent.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint_name.h"

namespace paceline::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

}  // namespace

void Agent::Start() {
  alive_ = true;
  released_ = false;
  ++incarnation_;
  ++life_;
  epoch_ = 0;
  forgotten_ = 0;
  generation_.reset();
  held_.clear();
  unacked_.clear();
  started_at_ = world_.clock_;
  FindSnapshots();
  Connect();
}

void Agent::Die(bool with_memory) {
  if (with_memory) files_.clear();
  if (!alive_) return;
  alive_ = false;
  ++life_;
  if (generation_) world_.Halt(*world_.trainings_.at(generation_->key().generation()));
  generation_.reset();
  if (session_) {
    const core::SessionId session = *session_;
    // The coordinator may hear of it late, or only by the lease.
    if (world_.random_.OneIn(2)) {
      world_.After(world_.NetworkDelay(), [this, session] {
        if (world_.sessions_.contains(session)) world_.Deliver(core::SessionClosed{session});
        world_.sessions_.erase(session);
      });
    }
  }
  session_.reset();
  registered_ = false;
}

void Agent::Connect() {
  const std::uint64_t life = life_;
  const microseconds pause{world_.random_.Between(1'000, 900'000)};
  world_.After(pause, [this, life] {
    if (life != life_ || !alive_ || session_) return;
    if (!world_.coordinator_up_) return Connect();
    session_ = core::SessionId{world_.next_session_++};
    world_.sessions_[*session_] = index_;
    link_busy_until_ = 0;
    v1::AgentMessage message;
    v1::RegisterNode& node = *message.mutable_register_();
    node.set_name(absl::StrCat("node-", index_));
    node.set_incarnation(incarnation_);
    node.set_host("simulated");
    node.set_slots(world_.options_.slots_per_node);
    node.set_metrics_address(absl::StrCat("127.0.0.1:", 9000 + index_));
    node.set_protocol_version(1);
    if (world_.options_.dedicated_nodes) node.set_run_id("run");
    node.set_snapshot_address(absl::StrCat("127.0.0.1:", 7000 + index_));
    node.mutable_left_behind()->Add(left_behind_.begin(), left_behind_.end());
    Send(std::move(message));
  });
}

void Agent::LoseSession() {
  if (!session_) return;
  const core::SessionId session = *session_;
  session_.reset();
  registered_ = false;
  ++life_;
  world_.After(milliseconds(world_.random_.Between(1, 3000)), [this, session] {
    if (world_.sessions_.contains(session)) world_.Deliver(core::SessionClosed{session});
    world_.sessions_.erase(session);
  });
  Connect();
}

void Agent::Send(v1::AgentMessage message) {
  if (!session_) return;
  message.set_incarnation(incarnation_);
  const core::SessionId session = *session_;
  // One stream keeps its order; what is under way when it breaks is lost.
  const std::int64_t at = std::max(
      link_busy_until_, world_.clock_ + std::chrono::nanoseconds(world_.NetworkDelay()).count());
  link_busy_until_ = at;
  world_.After(microseconds((at - world_.clock_) / 1000 + 1),
               [this, session, message = std::move(message)] {
                 if (session_ == session) world_.DeliverFrom(session, index_, message);
               });
}

void Agent::Tell(std::int64_t step, v1::AgentMessage message) {
  unacked_.push_back({step, message});
  if (registered_) Send(std::move(message));
}

void Agent::SendHeartbeat() {
  v1::AgentMessage message;
  v1::Heartbeat& heartbeat = *message.mutable_heartbeat();
  if (generation_) {
    v1::NodeProgress& progress = *heartbeat.add_progress();
    *progress.mutable_key() = generation_->key();
    for (const std::int32_t rank : ranks_) {
      v1::RankProgress& to = *progress.add_ranks();
      to.set_rank(rank);
      to.set_step(step_);
      if (!has_peers_) continue;
      to.set_load_seconds(0.01);
      to.set_begin_seconds(0.02);
    }
    if (hosts_rank_0() && step_ > generation_->start_step()) {
      progress.mutable_step()->set_step(step_);
      progress.mutable_step()->set_loss(1.0 / static_cast<double>(step_));
      progress.mutable_step()->set_step_seconds(
          std::chrono::duration<double>(world_.options_.step_time).count());
    }
  }
  Send(std::move(message));
}

void Agent::Heartbeat(std::uint64_t life) {
  if (life != life_ || !alive_ || !registered_) return;
  if (world_.random_.OneIn(world_.options_.heartbeats_per_session_break)) return LoseSession();
  SendHeartbeat();
  world_.After(heartbeat_, [this, life] { Heartbeat(life); });
}

bool Agent::Holds(const v1::GenerationKey& key) const {
  return generation_ && generation_->key().generation() == key.generation();
}

void Agent::OnMessage(core::SessionId session, const v1::CoordinatorMessage& message) {
  if (!alive_ || session_ != session || message.epoch() < epoch_) return;
  epoch_ = message.epoch();
  switch (message.body_case()) {
    case v1::CoordinatorMessage::kRegistered: {
      heartbeat_ = milliseconds(message.registered().heartbeat_interval_ms());
      if (registered_) return;
      registered_ = true;
      for (const Unacked& unacked : std::vector<Unacked>(unacked_)) Send(unacked.message);
      Heartbeat(life_);
      return;
    }
    case v1::CoordinatorMessage::kStart:
      return OnStart(message.start());
    case v1::CoordinatorMessage::kPeers:
      if (!Holds(message.peers().key()) || has_peers_) return;
      has_peers_ = true;
      if (auto training = world_.trainings_[message.peers().key().generation()]) {
        training->agents[index_] = this;
        training->ranks_with_peers += static_cast<int>(ranks_.size());
        world_.TryStep(training);
      }
      return;
    case v1::CoordinatorMessage::kWindowGrant: {
      const v1::Window& window = message.window_grant().window();
      if (!Holds(message.window_grant().key())) return;
      if (window.first_step() <= granted_until_) {
        granted_until_ = std::max(granted_until_, window.end_step());
      }
      world_.TryStep(world_.trainings_.at(generation_->key().generation()));
      return;
    }
    case v1::CoordinatorMessage::kStop:
      if (Holds(message.stop().key())) {
        Training& training = *world_.trainings_.at(generation_->key().generation());
        training.stopping = training.stopping || !message.stop().moves();
        training.moving = training.moving || message.stop().moves();
        training.moving_now =
            training.moving_now || (message.stop().moves() && !message.stop().at_checkpoint());
      }
      return;
    case v1::CoordinatorMessage::kSelfTest:
      return OnSelfTest(message.self_test());
    case v1::CoordinatorMessage::kCheckpointCommitted:
      if (!Holds(message.checkpoint_committed().key())) return;
      std::erase_if(unacked_, [&message](const Unacked& unacked) {
        return unacked.message.has_checkpoint_part() &&
               unacked.step <= message.checkpoint_committed().step();
      });
      return;
    case v1::CoordinatorMessage::kEnd:
      if (message.end().forget()) OnForget(message.end().key());
      return EndGeneration(message.end().key());
    case v1::CoordinatorMessage::kRelease:
      released_ = true;
      return Die();
    default:
      return;
  }
}

void Agent::OnClosed(core::SessionId session, const absl::Status& reason) {
  if (session_ != session) return;
  session_.reset();
  registered_ = false;
  ++life_;
  if (reason.code() == absl::StatusCode::kFailedPrecondition) return Die();
  Connect();
}

void Agent::OnSelfTest(const v1::SelfTest& test) {
  const std::uint64_t life = life_;
  const bool fails = world_.random_.OneIn(world_.options_.self_tests_per_failure);
  world_.After(milliseconds(world_.random_.Between(20, 2000)), [this, life, fails, id = test.id()] {
    if (life != life_ || !alive_) return;
    v1::AgentMessage message;
    message.mutable_self_test_done()->set_id(id);
    if (fails) message.mutable_self_test_done()->set_error("a product came out wrong");
    Send(std::move(message));
  });
}

void Agent::OnStart(const v1::StartGeneration& start) {
  if (generation_ && generation_->key().generation() >= start.key().generation()) return;
  if (generation_) EndGeneration(generation_->key());
  unacked_.clear();
  if (snapshots_.OnStart(start)) files_.clear();
  CheckHeld(start);
  generation_ = start;
  dead_rank_.reset();
  ranks_.clear();
  slot_of_.clear();
  at_end_ = false;
  for (const v1::RankAssignment& assignment : start.assignments()) {
    ranks_.push_back(assignment.rank());
    slot_of_[assignment.rank()] = assignment.slot();
  }
  granted_until_ = start.start_step();
  for (const v1::Window& window : start.windows()) {
    if (window.first_step() <= granted_until_) {
      granted_until_ = std::max(granted_until_, window.end_step());
    }
  }
  step_ = start.start_step();
  has_peers_ = false;
  world_.TrainingOf(start.key(), start.layout().pipeline() * start.layout().data(),
                    start.start_step());
  TakeUp(start);
}

void Agent::BecomeReady(const v1::StartGeneration& start) {
  // With its last checkpoint a run would end.
  const bool damaged =
      !start.checkpoint().empty() && world_.Checkpoints() > 1 &&
      world_.random_.OneIn(world_.options_.starts_per_damage * world_.options_.nodes);
  const std::uint64_t incarnation = incarnation_;
  for (const std::int32_t rank : ranks_) {
    world_.After(milliseconds(world_.random_.Between(20, 2000)),
                 [this, rank, incarnation, damaged, start_key = start.key(),
                  checkpoint = start.checkpoint()] {
                   if (!alive_ || incarnation != incarnation_ || !Holds(start_key)) return;
                   v1::AgentMessage message;
                   if (damaged && rank == ranks_.front()) {
                     v1::RankFailed& failed = *message.mutable_failed();
                     *failed.mutable_key() = start_key;
                     failed.set_rank(rank);
                     failed.set_status_code(static_cast<int>(absl::StatusCode::kDataLoss));
                     failed.set_error(absl::StrCat(checkpoint, ": a digest is off"));
                     failed.set_damaged_checkpoint(checkpoint);
                   } else {
                     *message.mutable_ready()->mutable_key() = start_key;
                     message.mutable_ready()->set_rank(rank);
                     message.mutable_ready()->set_address(absl::StrCat("127.0.0.1:", 20000 + rank));
                   }
                   Tell(0, std::move(message));
                 });
  }
}

bool Receives(const v1::StartGeneration& start, std::int32_t rank) {
  return std::any_of(start.transfers().begin(), start.transfers().end(),
                     [rank](const v1::StateTransfer& transfer) { return transfer.to() == rank; });
}

void Agent::CheckHeld(const v1::StartGeneration& start) {
  for (const v1::RankAssignment& assignment : start.assignments()) {
    const std::int32_t rank = assignment.rank();
    const bool has_source =
        std::any_of(start.sources().begin(), start.sources().end(),
                    [rank](const v1::SnapshotSource& source) { return source.to() == rank; });
    if (!start.live() || Receives(start, rank) || has_source) continue;
    const auto held = held_.find(assignment.slot());
    if (held == held_.end() || held->second.step != start.start_step() ||
        held->second.stage != rank % start.layout().pipeline()) {
      world_.trouble_ = absl::StrCat("rank ", rank, " is to go on from step ", start.start_step(),
                                     ", whose state it does not hold");
    }
  }
  if (!start.live()) held_.clear();
}

std::map<int, Agent::Held> Agent::HeldBySlot() const {
  std::map<int, Held> held;
  // An abort may come before the last step's update.
  const bool before = !at_end_ && step_ - 1 > generation_->start_step() && world_.random_.OneIn(3);
  for (const std::int32_t rank : ranks_) {
    if (rank == dead_rank_) continue;
    const bool whole =
        step_ > generation_->start_step() ||
        (generation_->live() && fetching_ == 0 && (has_peers_ || !Receives(*generation_, rank)));
    if (!whole || step_ == 0) continue;
    held[slot_of_.at(rank)] = {.rank = rank,
                               .stage = rank % generation_->layout().pipeline(),
                               .step = before ? step_ - 1 : step_};
  }
  return held;
}

void Agent::EndGeneration(const v1::GenerationKey& key) {
  std::map<int, Held> held;
  if (Holds(key)) {
    world_.Halt(*world_.trainings_.at(key.generation()));
    held_ = held = HeldBySlot();
    generation_.reset();
    unacked_.clear();
  }
  const std::uint64_t incarnation = incarnation_;
  world_.After(milliseconds(world_.random_.Between(1, 1500)), [this, key, incarnation, held] {
    if (!alive_ || incarnation != incarnation_) return;
    v1::AgentMessage message;
    *message.mutable_gone() = snapshots_.Held(key);
    for (const auto& [slot, what] : held) {
      if (key.generation() <= forgotten_) break;
      v1::HeldState& state = *message.mutable_gone()->add_held();
      state.set_rank(what.rank);
      state.set_step(what.step);
    }
    // The outbox keeps one of a generation. Asked again, an agent tells again what its ranks hold.
    std::erase_if(unacked_, [&message, &key](const Unacked& unacked) {
      const v1::GenerationGone& former = unacked.message.gone();
      const bool same = unacked.message.has_gone() && former.key().run_id() == key.run_id() &&
                        former.key().generation() == key.generation();
      if (same && message.gone().held().empty())
        *message.mutable_gone()->mutable_held() = former.held();
      return same;
    });
    Tell(0, std::move(message));
  });
}

void Agent::OnStepped(std::int64_t step, const StepEnd& end) {
  step_ = step;
  at_end_ = end.last;
  if (end.checkpoint || end.last) {
    for (const std::int32_t rank : ranks_) WritePart(rank, step, end);
  }
  if (end.last) return;
  TakeSnapshots(step);
  AskForWindows(step);
}

void Agent::AskForWindows(std::int64_t step) {
  if (granted_until_ - step > 8 || granted_until_ >= world_.options_.steps || step % 4 != 0) return;
  v1::AgentMessage message;
  *message.mutable_window_request()->mutable_key() = generation_->key();
  message.mutable_window_request()->set_until_step(step + 16);
  Send(std::move(message));
}

void Agent::WritePart(std::int32_t rank, std::int64_t step, const StepEnd& end) {
  const v1::GenerationKey key = generation_->key();
  const std::uint64_t incarnation = incarnation_;
  world_.After(
      milliseconds(world_.random_.Between(1, 400)), [this, rank, step, end, key, incarnation] {
        if (!alive_ || incarnation != incarnation_ || !Holds(key) || rank == dead_rank_) return;
        v1::AgentMessage message;
        v1::CheckpointPart& part = *message.mutable_checkpoint_part();
        *part.mutable_key() = key;
        part.set_rank(rank);
        part.mutable_position()->set_step(step);
        part.mutable_position()->set_sample(step * world_.GlobalBatch());
        part.mutable_position()->set_seed(7);
        part.mutable_position()->set_corpus_digest("c0ffee");
        part.set_file(absl::StrCat("rank-", rank, ".safetensors"));
        part.set_bytes(1000);
        const std::string folder =
            absl::StrCat("/runs/run/checkpoints/", CheckpointFolderName({step, key.generation()}));
        world_.disk_.parts[{folder, key.generation()}].insert(rank);
        Tell(step, std::move(message));
        if (!end.last) return;
        v1::AgentMessage finished;
        *finished.mutable_finished()->mutable_key() = key;
        finished.mutable_finished()->set_rank(rank);
        finished.mutable_finished()->set_step(step);
        finished.mutable_finished()->set_stopped(end.stopped);
        Tell(0, std::move(finished));
      });
}

void Agent::OnPeerLost() {
  if (!generation_ || ranks_.empty()) return;
  v1::AgentMessage message;
  v1::RankFailed& failed = *message.mutable_failed();
  *failed.mutable_key() = generation_->key();
  failed.set_rank(ranks_.front());
  failed.set_status_code(static_cast<int>(absl::StatusCode::kUnavailable));
  failed.set_error("all_reduce: a peer is gone");
  failed.set_exit_code(-1);
  Tell(0, std::move(message));
}

void Agent::WorkerDies() {
  if (!generation_ || ranks_.empty()) return;
  world_.Halt(*world_.trainings_.at(generation_->key().generation()));
  v1::AgentMessage message;
  v1::RankFailed& failed = *message.mutable_failed();
  dead_rank_ = ranks_.back();
  *failed.mutable_key() = generation_->key();
  failed.set_rank(ranks_.back());
  failed.set_signal(9);
  failed.add_stderr_tail("killed");
  Tell(0, std::move(message));
}

}  // namespace paceline::sim
