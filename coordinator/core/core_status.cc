// Questions to Core; none changes anything.
#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/costs.h"
#include "coordinator/core/limits.h"

namespace paceline::core {

absl::StatusOr<v1::RunStatus> Core::GetRun(const std::string& run_id, Now) const {
  const Run* run = impl_->state_.FindRun(run_id);
  if (run == nullptr) {
    return absl::NotFoundError(absl::StrCat("run \"", Cut(run_id, kMaxNameBytes),
                                            "\" is unknown; `paceline ps` lists the runs"));
  }
  return impl_->StatusOf(*run);
}

std::vector<v1::RunStatus> Core::ListRuns(Now) const {
  std::vector<v1::RunStatus> runs;
  runs.reserve(impl_->state_.runs.size());
  for (const auto& [id, run] : impl_->state_.runs) runs.push_back(impl_->StatusOf(run));
  return runs;
}

std::vector<v1::NodeStatus> Core::Nodes() const {
  std::vector<v1::NodeStatus> nodes;
  nodes.reserve(impl_->nodes_.size());
  for (const auto& [id, runtime] : impl_->nodes_) {
    nodes.push_back(impl_->StatusOf(impl_->state_.nodes.at(id)));
  }
  return nodes;
}

std::vector<v1::NodeStatus> Core::ListNodes(Now) const {
  std::vector<v1::NodeStatus> nodes;
  for (const auto& [id, node] : impl_->state_.nodes) {
    const Run* run = impl_->state_.FindRun(node.info.run_id());
    const bool missed = run != nullptr && !run->ended();
    if (node.alive || node.drained || missed) nodes.push_back(impl_->StatusOf(node));
  }
  return nodes;
}

v1::NodeState Core::Impl::StateOf(const Node& node, bool holds_ranks) const {
  if (node.drained && holds_ranks) return v1::NODE_STATE_DRAINING;
  if (node.quarantined) return v1::NODE_STATE_QUARANTINED;
  if (node.drained) return v1::NODE_STATE_DRAINED;
  const auto runtime = nodes_.find(node.id);
  if (!node.alive || runtime == nodes_.end()) return v1::NODE_STATE_LOST;
  if (holds_ranks) return v1::NODE_STATE_TRAINING;
  if (runtime->second.draining) return v1::NODE_STATE_ENDING;
  return node.info.run_id().empty() ? v1::NODE_STATE_IDLE : v1::NODE_STATE_SPARE;
}

v1::NodeStatus Core::Impl::StatusOf(const Node& node) const {
  v1::NodeStatus out;
  out.set_node_id(node.id.value());
  out.set_name(node.info.name());
  out.set_host(node.info.host());
  out.set_slots(node.info.slots());
  out.set_alive(node.alive);
  out.set_metrics_address(node.info.metrics_address());
  out.set_incarnation(node.info.incarnation());
  out.set_run_id(node.payer.empty() ? node.info.run_id() : node.payer);
  if (const auto open = generations_.find(node.payer); open != generations_.end()) {
    const auto ranks = open->second.ranks_of.find(node.id);
    if (ranks != open->second.ranks_of.end()) {
      out.set_ranks(static_cast<std::int32_t>(ranks->second.size()));
    }
  }
  out.set_state(StateOf(node, out.ranks() > 0));
  out.set_reason(node.drain_reason);
  out.set_failures(FailuresOf(node));
  return out;
}

v1::RunStatus Core::Impl::StatusOf(const Run& run) const {
  v1::RunStatus out;
  out.set_run_id(run.id());
  out.set_name(run.file.run.name);
  out.set_member(run.file.run.member);
  out.set_project(run.file.run.project);
  out.set_state(run.state);
  out.set_reason(run.reason);
  out.set_generation(run.generation.value());
  *out.mutable_layout() = run.plan.layout();
  out.set_steps_total(run.file.train.steps);
  if (run.step.step() > 0) *out.mutable_step() = run.step;
  if (run.eval.step() > 0) *out.mutable_eval() = run.eval;
  out.set_tokens(run.tokens);
  out.set_checkpoint_step(run.CommittedStep());
  if (!run.checkpoints.empty()) out.set_checkpoint(run.checkpoints.back().folder);
  out.set_currency(run.file.rates.currency);
  out.set_run_dir(run.request.run_dir());
  out.set_lost_steps(run.lost_steps);
  out.set_lost_tokens(run.lost_tokens);
  out.set_recoveries(run.recoveries);
  out.set_retryable(run.retryable);
  out.set_nodes_asked(run.file.launch.nodes);
  out.set_move_reason(run.move_reason);
  if (run.failure.has_key()) *out.mutable_failure() = run.failure;
  for (const auto& [phase, ms] : run.phases.Until(std::max(state_.at_ms, WallMs(now_)))) {
    v1::PhaseTime& time = *out.add_phases();
    time.set_phase(phase);
    time.set_ms(ms);
  }

  double cost = run.cost;
  for (const NodeId id : run.nodes) {
    const auto runtime = nodes_.find(id);
    v1::ChargePosted open;
    if (runtime != nodes_.end() &&
        ChargeUpTo(state_, state_.nodes.at(id), runtime->second.last_heartbeat_ms, &open)) {
      cost += open.amount();
    }
  }
  out.set_cost(cost);

  std::set<NodeId> told;
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    const Node* node = state_.FindNode(NodeId{placement.node_id()});
    if (node != nullptr && told.insert(node->id).second) *out.add_nodes() = StatusOf(*node);
  }
  if (run.state == v1::RUN_STATE_WAITING) out.set_reason(WaitingReason(run));
  if (const auto last = last_ranks_.find(run.id()); last != last_ranks_.end()) {
    for (const v1::RankProgress& rank : last->second) *out.add_ranks() = rank;
  }
  const auto it = generations_.find(run.id());
  if (it == generations_.end()) return out;
  const GenerationRuntime& generation = it->second;
  out.clear_ranks();
  out.set_reason(!run.stop_reason.empty() || run.move_reason.empty()
                     ? run.stop_reason
                     : absl::StrCat("moves at ", run.move_at_checkpoint ? "its next" : "a",
                                    " checkpoint: ", run.move_reason));
  if (run.state == v1::RUN_STATE_STARTING && generation.stepped)
    out.set_state(v1::RUN_STATE_RUNNING);
  if (generation.step) *out.mutable_step() = *generation.step;
  if (generation.eval) *out.mutable_eval() = *generation.eval;
  out.set_tokens(TokensAt(run, std::max(generation.last_step, run.CommittedStep())));
  for (const RankRuntime& rank : generation.ranks) *out.add_ranks() = rank.progress;
  return out;
}

std::string Core::Impl::WaitingReason(const Run& run) const {
  const Plan plan = BestPlan(run);
  std::string reason = plan.reason;
  if (plan.fits) {
    const auto left = plan_deadlines_.At(run.id());
    const double seconds = left ? std::chrono::duration<double>(*left - now_.steady).count() : 0;
    reason = absl::StrCat(plan.missing, plan.missing.empty() ? "goes on with " : "; goes on with ",
                          plan.reason, " within ",
                          static_cast<std::int64_t>(std::ceil(std::max(seconds, 0.0))), " s");
  }
  if (run.failure.has_key()) reason = absl::StrCat(run.reason, "; ", reason);
  for (const auto& [id, runtime] : nodes_) {
    if (!runtime.draining || runtime.draining->run_id() != run.id()) continue;
    return absl::StrCat(reason, "; ", state_.nodes.at(id).info.name(),
                        " is still ending generation ", runtime.draining->generation(), " of run ",
                        runtime.draining->run_id());
  }
  return reason;
}

}  // namespace paceline::core
