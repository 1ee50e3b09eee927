// Which nodes get work, inside Core: drains and quarantine, self-tests of those that would join a
// run under way, and the moves of runs between them.
#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/limits.h"
#include "coordinator/core/restore.h"
#include "coordinator/core/runs.h"

namespace paceline::core {
namespace {

absl::Status UnknownNode(const std::string& name) {
  return absl::NotFoundError(absl::StrCat("node \"", Cut(name, kMaxNameBytes),
                                          "\" is unknown; `paceline nodes` lists the nodes"));
}

}  // namespace

void Core::Impl::On(const DrainNodeCalled& event) {
  const auto known = state_.node_by_name.find(event.request.node());
  if (known == state_.node_by_name.end()) {
    return Answer(event.call, UnknownNode(event.request.node()));
  }
  const Node& node = state_.nodes.at(known->second);
  // A repeat, also one that comes after the node was undrained, drains nothing.
  if (node.drained || node.HasRequest(event.request.request_id())) {
    return Answer(event.call, absl::OkStatus());
  }
  v1::Fact fact;
  v1::NodeDrained& drained = *fact.mutable_node_drained();
  drained.set_node_id(node.id.value());
  const std::string reason = Cut(event.request.reason(), kMaxErrorBytes);
  drained.set_reason(reason.empty() ? "drained by request" : reason);
  drained.set_request_id(Cut(event.request.request_id(), kMaxNameBytes));
  Emit(std::move(fact));
  UpdateFree(node.id);
  retry_plans_ = consider_moves_ = true;
  Answer(event.call, absl::OkStatus());
}

void Core::Impl::On(const UndrainNodeCalled& event) {
  const auto known = state_.node_by_name.find(event.request.node());
  if (known == state_.node_by_name.end()) {
    return Answer(event.call, UnknownNode(event.request.node()));
  }
  const Node& node = state_.nodes.at(known->second);
  if (!node.drained || node.HasRequest(event.request.request_id())) {
    return Answer(event.call, absl::OkStatus());
  }
  v1::Fact fact;
  fact.mutable_node_undrained()->set_node_id(node.id.value());
  fact.mutable_node_undrained()->set_request_id(Cut(event.request.request_id(), kMaxNameBytes));
  Emit(std::move(fact));
  UpdateFree(node.id);
  retry_plans_ = consider_moves_ = true;
  Answer(event.call, absl::OkStatus());
}

// --- quarantine ---

int Core::Impl::FailuresOf(const Node& node) const {
  return node.FailuresSince(std::max(state_.at_ms, WallMs(now_)) - kFailureMemoryMs);
}

bool Core::Impl::ShallBeQuarantined(NodeId id) const {
  const Node* node = state_.FindNode(id);
  if (node == nullptr || node->drained || FailuresOf(*node) < kQuarantineFailures) return false;
  const std::string& serves = node->info.run_id();
  return std::none_of(state_.runs.begin(), state_.runs.end(), [&](const auto& entry) {
    const bool may_use = serves.empty() || serves == entry.first;
    return may_use && !entry.second.ended() && !CanGoOnWithout(entry.second, id);
  });
}

void Core::Impl::MaybeQuarantine(NodeId id, const std::string& run_id,
                                 const std::string& last_failure) {
  if (!ShallBeQuarantined(id)) return;
  v1::Fact fact;
  v1::NodeDrained& drained = *fact.mutable_node_drained();
  drained.set_node_id(id.value());
  drained.set_quarantined(true);
  drained.set_run_id(run_id);
  std::string reason = absl::StrCat(FailuresOf(state_.nodes.at(id)), " failures within an hour");
  if (!last_failure.empty()) {
    absl::StrAppend(&reason, "; the last: ", Cut(last_failure, kMaxStderrLineBytes));
  }
  drained.set_reason(reason);
  Emit(std::move(fact));
  UpdateFree(id);
  consider_moves_ = true;
}

void Core::Impl::QuarantineAfter(const Run& run) {
  const auto consider = [&](NodeId id, const std::string& last_failure) {
    // A crash loop keeps nothing: then the node goes, whatever it holds.
    const bool goes_on = !run.failure.has_key() || WhyNotAgain(run).empty();
    const bool may_wait = run.stop_reason.empty() && goes_on && !MayBeCorrupt(run);
    if (may_wait && HoldsLastCopy(state_, run, id)) return;
    MaybeQuarantine(id, run.id(), last_failure);
  };
  if (run.failure.has_key()) {
    if (run.failure.rank() >= run.plan.placements_size()) return;
    return consider(NodeId{run.plan.placements(run.failure.rank()).node_id()}, run.reason);
  }
  if (run.move_reason.empty() || !run.stop_reason.empty()) return;
  std::set<NodeId> nodes;
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    nodes.insert(NodeId{placement.node_id()});
  }
  for (const NodeId id : nodes) consider(id, "");
}

std::optional<Core::Impl::Overdue> Core::Impl::OverdueNode(const Run& run) const {
  for (const auto& [id, ranks] : generations_.at(run.id()).ranks_of) {
    if (!ShallBeQuarantined(id)) continue;
    const auto plan_of_others = [&, without = id](bool tested_alone) {
      std::vector<FreeNode> others = NodesWithin(run, tested_alone);
      std::erase_if(others, [&](const FreeNode& node) { return node.id == without; });
      return PlanFor(run.file, others, run.plan);
    };
    const Plan any = plan_of_others(/*tested_alone=*/false);
    if (!any.fits) continue;
    const Plan tested = plan_of_others(/*tested_alone=*/true);
    return Overdue{id, tested.fits && tested.placements.size() >= any.placements.size()};
  }
  return std::nullopt;
}

// Nodes that live, whether they are heard of now or not: a restart of the coordinator between the
// failure and this question changes no answer.
bool Core::Impl::CanGoOnWithout(const Run& run, NodeId without) const {
  std::vector<FreeNode> others;
  for (const auto& [id, node] : state_.nodes) {
    if (id == without || !node.alive || node.drained) continue;
    if (!node.info.run_id().empty() && node.info.run_id() != run.id()) continue;
    if (!node.payer.empty() && node.payer != run.id()) continue;
    others.push_back(FreeNodeOf(run, id));
  }
  return PlanFor(run.file, others, run.plan).fits;
}

// --- self-tests ---

void Core::Impl::BeginSelfTests(const Run& run) {
  const GenerationRuntime& generation = generations_.at(run.id());
  const std::int64_t staying =
      std::count_if(generation.ranks_of.begin(), generation.ranks_of.end(),
                    [this](const auto& entry) { return !ShallBeQuarantined(entry.first); });
  const std::int64_t missing = run.file.launch.nodes - staying;
  std::vector<FreeNode> candidates = FreeNodesFor(run);
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const FreeNode& a, const FreeNode& b) { return a.failures < b.failures; });
  std::int64_t begun = 0;
  for (const FreeNode& candidate : candidates) {
    NodeRuntime& node = nodes_.at(candidate.id);
    if (begun >= missing) return;
    if (node.test_failed == run.id()) continue;
    ++begun;
    if (node.test != 0 || node.tested_for == run.id()) continue;
    node.test = ++last_test_;
    node.test_run = run.id();
    node.tested_for.clear();
    tests_.Set(candidate.id, now_.steady + generation.limits.self_test);
    v1::CoordinatorMessage message;
    message.mutable_self_test()->set_id(node.test);
    message.mutable_self_test()->set_folder(CheckpointDir(run));
    Send(candidate.id, std::move(message));
  }
}

void Core::Impl::OnSelfTestDone(NodeId id, const v1::SelfTestDone& done) {
  NodeRuntime& node = nodes_.at(id);
  if (node.test == 0 || node.test != done.id()) return;
  if (!done.error().empty()) {
    return FailSelfTest(id, Cut(done.error(), kMaxErrorBytes));
  }
  node.test = 0;
  tests_.Clear(id);
  node.tested_for = node.test_run;
  consider_moves_ = true;
}

void Core::Impl::FailSelfTest(NodeId id, const std::string& error) {
  const Node& node = state_.nodes.at(id);
  const Timeouts limits = TimeoutsFor(BudgetOf(node));
  NodeRuntime& runtime = nodes_.at(id);
  runtime.test = 0;
  runtime.test_failed = runtime.test_run;
  tests_.Set(id, now_.steady + limits.self_test);
  v1::Fact fact;
  fact.mutable_node_failed()->set_node_id(id.value());
  fact.mutable_node_failed()->set_reason(absl::StrCat("its self-test: ", error));
  Emit(std::move(fact));
  MaybeQuarantine(id, runtime.test_run, absl::StrCat("its self-test: ", error));
}

void Core::Impl::OnTestDeadline(NodeId id) {
  tests_.Clear(id);
  const auto node = nodes_.find(id);
  if (node == nodes_.end()) return;
  if (node->second.test != 0) return FailSelfTest(id, "it did not end in time");
  node->second.test_failed.clear();
  consider_moves_ = true;
}

// --- moves ---

FreeNode Core::Impl::FreeNodeOf(const Run& run, NodeId id) const {
  const Node& node = state_.nodes.at(id);
  return {.id = id,
          .slots = node.info.slots(),
          .stays = StaysOn(run, node),
          .failures = FailuresOf(node)};
}

std::vector<FreeNode> Core::Impl::NodesWithin(const Run& run, bool tested_alone) const {
  std::vector<FreeNode> nodes;
  for (const auto& [id, ranks] : generations_.at(run.id()).ranks_of) {
    if (nodes_.contains(id) && !state_.nodes.at(id).drained) {
      nodes.push_back(FreeNodeOf(run, id));
    }
  }
  for (const FreeNode& node : FreeNodesFor(run)) {
    const NodeRuntime& runtime = nodes_.at(node.id);
    const bool may =
        tested_alone ? runtime.tested_for == run.id() : runtime.test_failed != run.id();
    if (may) nodes.push_back(node);
  }
  return nodes;
}

void Core::Impl::ConsiderMoves() {
  for (const auto& [id, run] : state_.runs) {
    const auto open = generations_.find(id);
    // While it starts up a failure is more likely than a gain; one that stops is left alone.
    if (open == generations_.end() || !open->second.stepped || open->second.final_step >= 0 ||
        run.state != v1::RUN_STATE_STARTING || run.file.launch.launcher == "mpi") {
      continue;
    }
    ConsiderMove(run);
  }
}

void Core::Impl::ConsiderMove(const Run& run) {
  if (!run.move_reason.empty() && !run.move_at_checkpoint) return;  // under way
  const GenerationRuntime& generation = generations_.at(run.id());
  for (const auto& [id, ranks] : generation.ranks_of) {
    const Node& node = state_.nodes.at(id);
    if (!node.drained) continue;
    return RequestMove(run, absl::StrCat(node.info.name(), " is drained: ", node.drain_reason),
                       /*at_checkpoint=*/false);
  }
  const std::optional<Overdue> overdue = OverdueNode(run);
  if (overdue && overdue->replaced) {
    const Node& node = state_.nodes.at(overdue->node);
    const std::string reason =
        absl::StrCat(node.info.name(), " has failed ", FailuresOf(node), " times within an hour");
    // The ranks are not stopped over and over for a checkpoint that the disk does not take. (One
    // that was discarded because its generation failed says nothing of the disk.)
    const bool failed = !run.failure.has_key() && !run.discarded.empty() &&
                        !run.discarded.back().committed() &&
                        run.discarded.back().step() > run.CommittedStep();
    if (!failed) return RequestMove(run, reason, /*at_checkpoint=*/false);
    if (run.move_reason.empty() && run.file.checkpoint.interval_steps > 0) {
      return RequestMove(run, reason, /*at_checkpoint=*/true);
    }
  }
  if (const std::optional<Plan> plan = LargerPlan(run, /*tested_alone=*/true)) {
    if (!run.move_reason.empty()) return;  // it waits for the checkpoint
    return RequestMove(run, absl::StrCat("it can go on with ", plan->reason),
                       run.file.checkpoint.interval_steps > 0);
  }
  // Also where a coordinator before this one has asked for a move: who passed is not journaled.
  if ((overdue && !overdue->replaced) || LargerPlan(run, /*tested_alone=*/false)) {
    BeginSelfTests(run);
  }
}

std::optional<Plan> Core::Impl::LargerPlan(const Run& run, bool tested_alone) const {
  const absl::StatusOr<v1::Layout> asked = LayoutFor(run.file);
  if (!asked.ok() || SameLayout(run.plan.layout(), *asked)) return std::nullopt;
  Plan plan = PlanFor(run.file, NodesWithin(run, tested_alone), run.plan);
  const auto ranks = static_cast<int>(plan.placements.size());
  const bool larger = plan.fits && (ranks > run.plan.placements_size() ||
                                    (plan.whole && !SameLayout(plan.layout, run.plan.layout())));
  return larger ? std::optional<Plan>(std::move(plan)) : std::nullopt;
}

void Core::Impl::RequestMove(const Run& run, const std::string& reason, bool at_checkpoint) {
  v1::Fact fact;
  v1::MoveRequested& move = *fact.mutable_move_requested();
  *move.mutable_key() = run.key();
  move.set_reason(reason);
  move.set_at_checkpoint(at_checkpoint);
  Emit(std::move(fact));
  SendMove(run, std::nullopt);
}

void Core::Impl::SendMove(const Run& run, std::optional<NodeId> only) {
  v1::CoordinatorMessage message;
  v1::StopGeneration& stop = *message.mutable_stop();
  *stop.mutable_key() = run.key();
  stop.set_reason(run.move_reason);
  stop.set_moves(true);
  stop.set_at_checkpoint(run.move_at_checkpoint);
  if (only) return Send(*only, std::move(message));
  SendToAll(generations_.at(run.id()), message);
}

}  // namespace paceline::core
