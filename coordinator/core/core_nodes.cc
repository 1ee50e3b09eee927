// Membership inside Core: registrations, heartbeats, leases, charges, and which nodes are free.
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/costs.h"
#include "coordinator/core/limits.h"

namespace paceline::core {
namespace {

// Of nodes that registered before any run.
constexpr std::int64_t kDefaultBudgetMs = 5000;

bool Same(const v1::GenerationKey& a, const v1::GenerationKey& b) {
  return a.generation() == b.generation() && a.run_id() == b.run_id();
}

}  // namespace

void Core::Impl::OnRegister(SessionId session, const v1::RegisterNode& info) {
  const auto refuse = [this, session](absl::Status why) {
    decision_.effects.push_back(CloseSession{session, std::move(why)});
  };
  if (const auto bound = sessions_.find(session); bound != sessions_.end()) {
    const Node& node = state_.nodes.at(bound->second);
    if (node.info.name() != info.name() || node.info.incarnation() != info.incarnation()) {
      return refuse(absl::InvalidArgumentError(
          absl::StrCat("this session is registered as node ", node.info.name(),
                       "; another node or incarnation opens a session of its own")));
    }
  }
  const absl::StatusOr<Admission> admission = Admit(state_, info);
  if (!admission.ok()) return refuse(admission.status());
  const auto known = state_.node_by_name.find(info.name());
  const NodeId id =
      known == state_.node_by_name.end() ? NodeId{state_.next_node_id} : known->second;
  const bool same_incarnation = known != state_.node_by_name.end() &&
                                state_.nodes.at(id).info.incarnation() == info.incarnation();
  if (*admission == Admission::kReplaces) {
    const std::string reason =
        absl::StrCat("node ", info.name(), ": its agent was started anew (incarnation ",
                     info.incarnation(), " after ", state_.nodes.at(id).info.incarnation(), ")");
    LoseNode(id, reason, absl::FailedPreconditionError(reason));
  }
  if (*admission != Admission::kReconnects) Join(id, info);
  BindSession(session, id);
  // The workers of a fresh incarnation are its own; of an old one nobody knows until it speaks.
  if (same_incarnation) {
    nodes_.at(id).heard = false;
    // What ran up while nobody listened is charged now: this coordinator may die soon as well, and
    // the run may end before the node is heard of again.
    Charge(id);
  }
  for (const v1::GenerationGone& left : info.left_behind()) NoteHeld(id, left);
  GrantLease(id);
  TellWhereItStands(id);
  for (const v1::GenerationGone& left : info.left_behind()) ForgetStale(id, left.key());
  UpdateFree(id);
  retry_deferred_ = true;
  TryPlans();
}

void Core::Impl::Join(NodeId id, const v1::RegisterNode& info) {
  v1::Fact joined;
  joined.mutable_node_joined()->set_node_id(id.value());
  *joined.mutable_node_joined()->mutable_node() = info;
  joined.mutable_node_joined()->mutable_node()->clear_left_behind();
  Emit(std::move(joined));
  nodes_[id] = {.last_heartbeat_ms = state_.at_ms};
}

void Core::Impl::BindSession(SessionId session, NodeId node) {
  NodeRuntime& runtime = nodes_.at(node);
  if (runtime.session && *runtime.session != session) {
    sessions_.erase(*runtime.session);
    decision_.effects.push_back(
        CloseSession{*runtime.session, absl::UnavailableError("the agent opened another session")});
  }
  if (runtime.session != session) runtime.told_to_forget.clear();
  runtime.session = session;
  runtime.test = 0;             // its answer may have been lost with the session before
  runtime.test_failed.clear();  // as is the time at which it would be forgotten
  tests_.Clear(node);
  sessions_[session] = node;
  // Registering is a sign of life like a heartbeat.
  runtime.last_heartbeat_ms = WallMs(now_);
}

void Core::Impl::GrantLease(NodeId id) {
  const Node& node = state_.nodes.at(id);
  const Timeouts limits = TimeoutsFor(BudgetOf(node));
  leases_.Grant(id, node.incarnation(), limits.lease, now_.steady);
  v1::CoordinatorMessage message;
  message.mutable_registered()->set_node_id(id.value());
  message.mutable_registered()->set_heartbeat_interval_ms(limits.heartbeat.count());
  message.mutable_registered()->set_lease_ms(limits.lease.count());
  Send(id, std::move(message));
}

void Core::Impl::TellWhereItStands(NodeId id) {
  const Node& node = state_.nodes.at(id);
  NodeRuntime& runtime = nodes_.at(id);
  if (const auto it = generations_.find(node.payer);
      it != generations_.end() && it->second.ranks_of.contains(id)) {
    const Run& run = state_.runs.at(node.payer);
    SendStart(run, id);
    if (it->second.ready == it->second.ranks.size()) SendPeers(it->second, id);
    if (!run.move_reason.empty()) SendMove(run, id);
    if (!run.stop_reason.empty()) {
      v1::CoordinatorMessage stop;
      *stop.mutable_stop()->mutable_key() = it->second.key;
      stop.mutable_stop()->set_reason(run.stop_reason);
      Send(id, std::move(stop));
    }
    return;
  }
  if (runtime.draining) {
    Drain(id, *runtime.draining, "the generation is over");
  }
  const Run* served = state_.FindRun(node.info.run_id());
  if (!runtime.heard && served != nullptr && served->ended()) {
    // It was there when the run ended, and may not have been told.
    v1::CoordinatorMessage release;
    release.mutable_release()->set_reason("its run has ended");
    Send(id, std::move(release));
    runtime.released = true;
  }
}

void Core::Impl::OnHeartbeat(NodeId id, const v1::Heartbeat& heartbeat) {
  const Node& node = state_.nodes.at(id);
  if (!leases_.Renew(id, node.incarnation(), now_.steady).ok()) return;
  nodes_.at(id).last_heartbeat_ms = WallMs(now_);
  for (const v1::NodeProgress& progress : heartbeat.progress()) {
    OnProgress(id, progress);
    WatchProgress(id, progress.key());
  }
  NodeRuntime& runtime = nodes_.at(id);
  if (runtime.heard) return;
  runtime.heard = true;
  UpdateFree(id);
  TryPlans();
}

void Core::Impl::OnGone(NodeId id, const v1::GenerationGone& gone) {
  const v1::GenerationKey& key = gone.key();
  NoteHeld(id, gone);
  ForgetStale(id, key);
  NodeRuntime& runtime = nodes_.at(id);
  if (runtime.draining && Same(*runtime.draining, key)) {
    runtime.draining.reset();
    drains_.Clear(id);
    OnLeft(key);
    UpdateFree(id);
    TryPlans();
    return;
  }
  const auto it = generations_.find(key.run_id());
  if (it == generations_.end() || !Same(it->second.key, key)) return;
  const auto ranks = it->second.ranks_of.find(id);
  if (ranks == it->second.ranks_of.end()) return;
  for (const std::int32_t rank : ranks->second) {
    if (it->second.ranks[static_cast<std::size_t>(rank)].finished) continue;
    return FailGeneration(
        it->second, FailureOf(it->second, rank, v1::FAILURE_CAUSE_WORKER_EXIT,
                              absl::StatusCode::kUnavailable, "its worker ended without a word"));
  }
}

void Core::Impl::LoseNode(NodeId id, const std::string& reason, const absl::Status& to_session,
                          bool failed) {
  const auto lost = nodes_.find(id);
  if (lost == nodes_.end()) return;
  const std::string payer = state_.nodes.at(id).payer;
  Charge(id);
  if (const auto it = generations_.find(state_.nodes.at(id).payer); it != generations_.end()) {
    if (const auto ranks = it->second.ranks_of.find(id); ranks != it->second.ranks_of.end()) {
      // Of a node that this coordinator has never heard nobody knows how long it was well.
      it->second.trouble_ms = std::max(lost->second.last_heartbeat_ms, WallMs(opened_));
      FailGeneration(it->second,
                     FailureOf(it->second, ranks->second.front(), v1::FAILURE_CAUSE_NODE_LOST,
                               absl::StatusCode::kUnavailable, reason));
    }
  }
  if (lost->second.session) {
    sessions_.erase(*lost->second.session);
    decision_.effects.push_back(CloseSession{*lost->second.session, to_session});
  }
  if (lost->second.draining) OnLeft(*lost->second.draining);
  nodes_.erase(lost);
  // It may come back with them.
  const bool holds_last = std::any_of(state_.runs.begin(), state_.runs.end(), [&](const auto& run) {
    return run.second.state == v1::RUN_STATE_WAITING && run.second.generation.value() > 0 &&
           HoldsLastCopy(state_, run.second, id);
  });
  for (auto& [run_id, held] : held_) {
    const Run& run = state_.runs.at(run_id);
    held.snapshots.erase(id);
    std::erase_if(held.live, [&run, id](const auto& entry) {
      return run.plan.placements(entry.first).node_id() == id.value();
    });
  }
  leases_.Remove(id);
  drains_.Clear(id);
  tests_.Clear(id);
  v1::Fact left;
  left.mutable_node_left()->set_node_id(id.value());
  left.mutable_node_left()->set_incarnation(state_.nodes.at(id).info.incarnation());
  left.mutable_node_left()->set_reason(reason);
  left.mutable_node_left()->set_failed(failed);
  Emit(std::move(left));
  if (failed && !holds_last) MaybeQuarantine(id, payer, reason);
  UpdateFree(id);
  retry_plans_ = true;  // nobody waits for it any more
  EndReadingFrom(id, reason);
}

void Core::Impl::EndReadingFrom(NodeId id, const std::string& reason) {
  std::vector<std::pair<std::string, std::int32_t>> in_vain;  // runs, each with a rank that waits
  for (const auto& [run_id, generation] : generations_) {
    for (const v1::SnapshotSource& source : RunOf(generation).plan.sources()) {
      const RankRuntime& reader = generation.ranks[static_cast<std::size_t>(source.to())];
      if (source.node_id() != id.value() || reader.node == id || reader.ready) continue;
      in_vain.emplace_back(run_id, source.to());
      break;
    }
  }
  for (const auto& [run_id, rank] : in_vain) {
    GenerationRuntime& generation = generations_.at(run_id);
    FailGeneration(generation, FailureOf(generation, rank, v1::FAILURE_CAUSE_NODE_LOST,
                                         absl::StatusCode::kUnavailable,
                                         absl::StrCat("it was to read its state from a node that "
                                                      "is lost: ",
                                                      reason)));
  }
}

void Core::Impl::Fence(NodeId id, const v1::GenerationKey& key) {
  if (key.run_id().size() > kMaxNameBytes) return;
  NodeRuntime& runtime = nodes_.at(id);
  if (runtime.draining && Same(*runtime.draining, key)) return;  // told already
  const auto it = generations_.find(state_.nodes.at(id).payer);
  if (it != generations_.end() && it->second.ranks_of.contains(id)) {
    v1::CoordinatorMessage message;
    *message.mutable_end()->mutable_key() = key;
    message.mutable_end()->set_reason("the generation is over");
    return Send(id, std::move(message));
  }
  Drain(id, key, "the generation is over");
}

void Core::Impl::Drain(NodeId id, const v1::GenerationKey& key, const std::string& reason) {
  v1::CoordinatorMessage message;
  *message.mutable_end()->mutable_key() = key;
  message.mutable_end()->set_reason(reason);
  Send(id, std::move(message));
  NodeRuntime& runtime = nodes_.at(id);
  if (!runtime.draining || !Same(*runtime.draining, key)) runtime.draining_since = now_.steady;
  runtime.draining = key;
  drains_.Set(id, now_.steady + TimeoutsFor(BudgetOf(state_.nodes.at(id))).shutdown);
  UpdateFree(id);
}

void Core::Impl::Charge(NodeId id) {
  const auto runtime = nodes_.find(id);
  if (runtime == nodes_.end()) return;
  v1::Fact fact;
  v1::ChargePosted charge;
  if (!ChargeUpTo(state_, state_.nodes.at(id), runtime->second.last_heartbeat_ms, &charge)) return;
  *fact.mutable_charge_posted() = std::move(charge);
  Emit(std::move(fact));
}

void Core::Impl::ChargeAll(const std::set<NodeId>& nodes) {
  for (const NodeId id : nodes) Charge(id);
}

void Core::Impl::UpdateFree(NodeId id) {
  const Node& node = state_.nodes.at(id);
  const auto runtime = nodes_.find(id);
  bool free = runtime != nodes_.end() && runtime->second.session && runtime->second.heard &&
              !runtime->second.draining && !runtime->second.released && !node.drained;
  if (const auto it = generations_.find(node.payer); free && it != generations_.end()) {
    free = !it->second.ranks_of.contains(id);
  }
  if (free && free_.insert(id).second) {
    free_slots_ += node.info.slots();
    consider_moves_ = true;
  }
  if (!free && free_.erase(id) > 0) free_slots_ -= node.info.slots();
}

std::vector<FreeNode> Core::Impl::FreeNodesFor(const Run& run) const {
  std::vector<FreeNode> nodes;
  for (const NodeId id : free_) {
    const Node& node = state_.nodes.at(id);
    if (!node.info.run_id().empty() && node.info.run_id() != run.id()) continue;
    nodes.push_back(FreeNodeOf(run, id));
  }
  return nodes;
}

std::int64_t Core::Impl::BudgetOf(const Node& node) const {
  const Run* run = state_.FindRun(node.payer.empty() ? node.info.run_id() : node.payer);
  return run == nullptr ? kDefaultBudgetMs : run->file.failure.budget_ms;
}

}  // namespace paceline::core
