// Questions to Core; none changes anything.
#include <algorithm>

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

v1::NodeStatus Core::Impl::StatusOf(const Node& node) const {
  v1::NodeStatus out;
  out.set_node_id(node.id.value());
  out.set_name(node.info.name());
  out.set_host(node.info.host());
  out.set_slots(node.info.slots());
  out.set_alive(node.alive);
  out.set_metrics_address(node.info.metrics_address());
  out.set_incarnation(node.info.incarnation());
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
  if (run.failure.has_key()) *out.mutable_failure() = run.failure;

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

  NodeId last;
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    const Node* node = state_.FindNode(NodeId{placement.node_id()});
    if (node == nullptr || node->id == last) continue;  // placements go node by node
    last = node->id;
    *out.add_nodes() = StatusOf(*node);
  }
  if (run.state == v1::RUN_STATE_WAITING) out.set_reason(WaitingReason(run));
  if (const auto last = last_ranks_.find(run.id()); last != last_ranks_.end()) {
    for (const v1::RankProgress& rank : last->second) *out.add_ranks() = rank;
  }
  const auto it = generations_.find(run.id());
  if (it == generations_.end()) return out;
  const GenerationRuntime& generation = it->second;
  out.clear_ranks();
  out.set_reason(run.stop_reason);
  if (run.state == v1::RUN_STATE_STARTING && generation.stepped)
    out.set_state(v1::RUN_STATE_RUNNING);
  if (generation.step) *out.mutable_step() = *generation.step;
  if (generation.eval) *out.mutable_eval() = *generation.eval;
  out.set_tokens(TokensAt(run, std::max(generation.last_step, run.CommittedStep())));
  for (const RankRuntime& rank : generation.ranks) *out.add_ranks() = rank.progress;
  return out;
}

std::string Core::Impl::WaitingReason(const Run& run) const {
  std::string reason = PlanFor(run.file, FreeNodesFor(run)).reason;
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
