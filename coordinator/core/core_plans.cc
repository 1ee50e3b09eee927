// Which nodes a run goes on with, inside Core: how long it waits for those that it asked for, and
// what its next generation begins from.
#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/runs.h"

namespace paceline::core {
namespace {

// Steps that a rank may compute on before its worker has left or was killed.
constexpr int kLeavingSteps = 4;

// The latest submission has trained.
bool HasBegun(const Run& run) { return run.generation >= run.first_generation; }

// Ranks of its last generation, or those that it asks for.
std::int64_t RanksBefore(const Run& run) {
  return HasBegun(run) ? run.plan.placements_size() : run.file.WorldSize();
}

}  // namespace

void Core::Impl::TryPlans() {
  for (const auto& [id, run] : state_.runs) {
    if (run.state == v1::RUN_STATE_WAITING && !run.generation_open) TryPlan(run);
  }
}

// Whole, or with as many ranks as before, a run begins at once. With fewer it begins when nobody
// can be expected back, or was for long enough.
void Core::Impl::TryPlan(const Run& run) {
  if (run.checkpoints.size() > 0 && run.CommittedStep() >= run.file.train.steps) {
    return EndRun(run, v1::RUN_STATE_COMPLETED,
                  absl::StrCat("nothing was left to do: step ", run.CommittedStep(),
                               " is committed, and [train] steps = ", run.file.train.steps),
                  false);
  }
  const std::int64_t before = RanksBefore(run);
  const SteadyTime patience = PatienceOf(run);
  const bool waits = now_.steady < patience && MayComeBack(run);
  if (waits) plan_deadlines_.Set(run.id(), patience);
  if (waits && free_slots_ < before) return;  // cheap: most registrations end here
  if (const SteadyTime leaving = LeavingUntil(run); now_.steady < leaving) {
    if (leaving != SteadyTime::max()) {
      plan_deadlines_.Set(run.id(), waits ? std::min(leaving, patience) : leaving);
    }
    return;
  }
  const Plan plan = BestPlan(run);
  if (!plan.fits) return;
  if (waits && !plan.whole && static_cast<std::int64_t>(plan.placements.size()) < before) return;
  StartGeneration(run, plan);
}

Plan Core::Impl::BestPlan(const Run& run) const {
  std::set<NodeId> former;
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    former.insert(NodeId{placement.node_id()});
  }
  std::optional<NodeId> corrupt;
  if (run.failure.cause() == v1::FAILURE_CAUSE_CORRUPT_STATE) {
    corrupt = NodeId{run.plan.placements(run.failure.rank()).node_id()};
  }
  const auto distrust = [&](const FreeNode& node) {  // 0: none
    const NodeRuntime& runtime = nodes_.at(node.id);
    if (runtime.test_failed == run.id() || corrupt == node.id) return 2;
    const bool stays = node.stays && former.contains(node.id);
    return stays || runtime.tested_for == run.id() ? 0 : 1;
  };
  const std::vector<FreeNode> all = FreeNodesFor(run);
  Plan best;
  for (int most = 0; most <= 2; ++most) {
    std::vector<FreeNode> nodes = all;
    std::erase_if(nodes, [&](const FreeNode& node) { return distrust(node) > most; });
    Plan plan = PlanFor(run.file, nodes, run.plan);
    if (!best.fits || plan.placements.size() > best.placements.size()) best = std::move(plan);
    const bool enough = std::ssize(best.placements) >= RanksBefore(run);
    if ((best.fits && enough) || nodes.size() == all.size()) break;
  }
  return best;
}

SteadyTime Core::Impl::PatienceOf(const Run& run) {
  const Timeouts limits = TimeoutsFor(run.file.failure);
  const SteadyTime since = waiting_since_.try_emplace(run.id(), now_.steady).first->second;
  return since + (HasBegun(run) ? limits.rejoin : limits.startup);
}

bool Core::Impl::MayComeBack(const Run& run) const {
  if (!HasBegun(run)) return true;
  return std::any_of(run.plan.placements().begin(), run.plan.placements().end(),
                     [this](const v1::RankPlacement& placement) {
                       const NodeId id{placement.node_id()};
                       const Node* node = state_.FindNode(id);
                       if (node == nullptr || node->drained) return false;
                       const auto runtime = nodes_.find(id);
                       return runtime == nodes_.end() || !runtime->second.session.has_value();
                     });
}

// Nodes of the last generation are waited for, though others be free: what their ranks hold in
// memory saves steps. Their GenerationGone ends it, or their lease, or time: a process that cannot
// be killed shall not hold up the run.
SteadyTime Core::Impl::LeavingUntil(const Run& run) const {
  const Timeouts limits = TimeoutsFor(run.file.failure);
  const double step_seconds = std::clamp(run.step.step_seconds(), 0.0, 3600.0);
  const auto patience =
      limits.shutdown + limits.lease +
      kLeavingSteps * std::chrono::milliseconds(static_cast<std::int64_t>(1e3 * step_seconds));
  SteadyTime until = SteadyTime::min();
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    const auto node = nodes_.find(NodeId{placement.node_id()});
    if (node == nodes_.end() || node->second.released) continue;
    if (!node->second.heard) return SteadyTime::max();  // until it speaks, or its lease ends
    if (node->second.draining) until = std::max(until, node->second.draining_since + patience);
  }
  return until;
}

// A process of the run's last generation may live there: the agent is still the same one, or was
// only out of hearing and has told what its workers hold.
bool Core::Impl::StaysOn(const Run& run, const Node& node) const {
  if (node.joined_index < run.plan_index || run.plan_index == 0) return true;
  const auto held = held_.find(run.id());
  return held != held_.end() &&
         std::any_of(held->second.live.begin(), held->second.live.end(), [&](const auto& entry) {
           return run.plan.placements(entry.first).node_id() == node.id.value();
         });
}

void Core::Impl::StartGeneration(const Run& run, const Plan& plan) {
  const RestorePoint restore = RestoreWith(run, plan);
  const std::string why_from_disk = WhyFromDisk(run, restore);
  held_.erase(run.id());
  waiting_since_.erase(run.id());
  plan_deadlines_.Clear(run.id());
  RollBackTo(run, restore.step);
  v1::Fact fact;
  v1::GenerationStarted& started = *fact.mutable_generation_started();
  *started.mutable_key() = run.key();
  started.mutable_key()->set_generation(run.generation.value() + 1);
  *started.mutable_layout() = plan.layout;
  started.mutable_placements()->Add(plan.placements.begin(), plan.placements.end());
  if (!restore.live && !run.checkpoints.empty()) {
    started.set_checkpoint(run.checkpoints.back().folder);
  }
  started.set_start_step(restore.step);
  started.set_start_tokens(TokensAt(run, restore.step));
  started.set_live(restore.live);
  started.mutable_transfers()->Add(restore.transfers.begin(), restore.transfers.end());
  started.mutable_sources()->Add(restore.sources.begin(), restore.sources.end());
  started.set_reason(why_from_disk.empty() ? plan.reason
                                           : absl::StrCat(plan.reason, "; ", why_from_disk));
  for (const v1::RankPlacement& placement : plan.placements) {
    const NodeId id{placement.node_id()};
    if (state_.nodes.at(id).payer != run.id()) Charge(id);  // idle time up to here
  }
  const v1::GenerationStarted former = run.plan;
  Emit(std::move(fact));
  AddRuntime(run);
  ForgetHeld(former);
  for (const v1::RankPlacement& placement : former.placements()) {
    const Node* node = state_.FindNode(NodeId{placement.node_id()});
    if (node != nullptr && !node->alive) MaybeQuarantine(node->id, run.id(), "");  // without it now
  }
  GenerationRuntime& generation = generations_.at(run.id());
  GrantWindows(generation, 0);
  for (const auto& [node, ranks] : generation.ranks_of) {
    UpdateFree(node);
    if (leases_.TtlOf(node) != generation.limits.lease) GrantLease(node);  // this run's budget
    SendStart(run, node);
  }
}

}  // namespace paceline::core
