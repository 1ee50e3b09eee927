#include "coordinator/core/restore.h"

#include <utility>

#include "common/parallel_layout.h"
#include "coordinator/core/planner.h"

namespace paceline::core {
namespace {

// By rank of the plan that stands where one of the last generation with the same state stood: the
// step that the worker there holds.
std::map<std::int32_t, std::int64_t> LiveInPlace(const Run& run, const Held& held,
                                                 const v1::Layout& layout,
                                                 const std::vector<v1::RankPlacement>& placements) {
  using Place = std::pair<std::uint64_t, std::int32_t>;  // node, slot
  std::map<Place, std::int32_t> there;                   // former rank
  for (const auto& [rank, step] : held.live) {
    const v1::RankPlacement& at = run.plan.placements(rank);
    there[{at.node_id(), at.slot()}] = rank;
  }
  std::map<std::int32_t, std::int64_t> in_place;
  for (const v1::RankPlacement& placement : placements) {
    const auto former = there.find({placement.node_id(), placement.slot()});
    if (former == there.end()) continue;
    if (StateOf(run.plan.layout(), former->second) != StateOf(layout, placement.rank())) continue;
    in_place[placement.rank()] = held.live.at(former->second);
  }
  return in_place;
}

v1::SnapshotSource SourceOf(std::int32_t to, NodeId node, std::int32_t from) {
  v1::SnapshotSource source;
  source.set_to(to);
  source.set_from(from);
  source.set_node_id(node.value());
  return source;
}

// Nodes with a snapshot of one step, by its state, each with the rank as which it was taken.
using Holders = std::map<std::int32_t, std::map<NodeId, std::int32_t>>;

Holders HoldersOf(const Held& held, const v1::Layout& layout, std::int64_t step) {
  Holders holders;
  for (const auto& [node, ranks] : held.snapshots) {
    for (const auto& [rank, steps] : ranks) {
      if (steps.contains(step)) holders[StateOf(layout, rank)][node] = rank;
    }
  }
  return holders;
}

// False: it is not covered.
bool Cover(const std::map<std::int32_t, std::int64_t>& in_place, const Holders& holders,
           const v1::Layout& layout, const std::vector<v1::RankPlacement>& placements,
           const std::function<bool(NodeId)>& serves, RestorePoint& restore) {
  std::map<std::int32_t, std::vector<std::int32_t>> have;  // ranks, by state
  std::vector<std::int32_t> need;
  for (const v1::RankPlacement& placement : placements) {
    const std::int32_t rank = placement.rank();
    const std::int32_t state = StateOf(layout, rank);
    const auto live = in_place.find(rank);
    bool has = live != in_place.end() && live->second == restore.step;
    if (const auto found = holders.find(state); !has && found != holders.end()) {
      const auto here = found->second.find(NodeId{placement.node_id()});
      has = here != found->second.end();
      if (has) restore.sources.push_back(SourceOf(rank, here->first, here->second));
    }
    has ? have[state].push_back(rank) : need.push_back(rank);
  }
  for (const std::int32_t rank : need) {
    const std::int32_t state = StateOf(layout, rank);
    std::vector<std::int32_t>& from = have[state];
    if (!from.empty()) {
      v1::StateTransfer& transfer = restore.transfers.emplace_back();
      // Several that need it get it from several, as far as there are.
      transfer.set_from(from[restore.transfers.size() % from.size()]);
      transfer.set_to(rank);
      continue;
    }
    const auto found = holders.find(state);
    if (found == holders.end()) return false;
    bool served = false;
    for (const auto& [node, taken_as] : found->second) {
      if (!serves(node)) continue;
      restore.sources.push_back(SourceOf(rank, node, taken_as));
      from.push_back(rank);
      served = true;
      break;
    }
    if (!served) return false;
  }
  return true;
}

// A rank of the last generation whose state nobody holds of any of `steps`.
std::optional<std::int32_t> MissingIn(const Run& run, const Held& held,
                                      const std::set<std::int64_t, std::greater<>>& steps) {
  const v1::Layout& layout = run.plan.layout();
  std::set<std::int32_t> states;
  for (const auto& [rank, step] : held.live) {
    if (steps.contains(step)) states.insert(StateOf(layout, rank));
  }
  for (const std::int64_t step : steps) {
    for (const auto& [state, nodes] : HoldersOf(held, layout, step)) states.insert(state);
  }
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    if (!states.contains(StateOf(layout, placement.rank()))) return placement.rank();
  }
  return std::nullopt;
}

}  // namespace

bool SameState(const v1::Layout& a, const v1::Layout& b) {
  if (SameLayout(a, b)) return true;
  return a.pipeline() == b.pipeline() && a.expert() == b.expert() &&
         a.virtual_stages() == b.virtual_stages() && !a.shard_optimizer() && !b.shard_optimizer();
}

// rank = (copy * pipeline + stage) * expert + expert index, as common/parallel_layout.h has it.
std::int32_t StateOf(const v1::Layout& layout, std::int32_t rank) {
  return layout.shard_optimizer() ? rank : rank % (layout.pipeline() * layout.expert());
}

RestorePoint RestoreFor(const Run& run, const Held& held, const v1::Layout& layout,
                        const std::vector<v1::RankPlacement>& placements,
                        const std::function<bool(NodeId)>& serves) {
  RestorePoint from_disk = {.step = run.CommittedStep()};
  if (run.plan.placements().empty() || !SameState(run.plan.layout(), layout)) return from_disk;
  std::set<std::int64_t, std::greater<>> steps;
  const auto consider = [&steps, &run](std::int64_t step) {
    if (step > 0 && step >= run.CommittedStep() && step <= run.GrantedUntil()) steps.insert(step);
  };
  for (const auto& [rank, step] : held.live) consider(step);
  for (const auto& [node, ranks] : held.snapshots) {
    for (const auto& [rank, of_rank] : ranks) {
      for (const std::int64_t step : of_rank) consider(step);
    }
  }
  const std::map<std::int32_t, std::int64_t> in_place = LiveInPlace(run, held, layout, placements);
  for (const std::int64_t step : steps) {
    RestorePoint restore = {.live = true, .step = step};
    const Holders holders = HoldersOf(held, run.plan.layout(), step);
    if (Cover(in_place, holders, layout, placements, serves, restore)) return restore;
  }
  from_disk.missing = MissingIn(run, held, steps);
  return from_disk;
}

bool HoldsLastCopy(const State& state, const Run& run, NodeId node) {
  const bool planned = !run.failure.has_key();
  // A node out of hearing may come back with all that its workers hold.
  const bool lost = run.failure.cause() == v1::FAILURE_CAUSE_NODE_LOST;
  if (planned && run.last_step <= run.CommittedStep()) return false;  // all of it is on disk
  std::map<std::int32_t, std::pair<bool, bool>> held;                 // by state: here, elsewhere
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    auto& [here, elsewhere] = held[StateOf(run.plan.layout(), placement.rank())];
    const NodeId id{placement.node_id()};
    const Node* at = state.FindNode(id);
    const bool lives = at != nullptr && at->alive && at->joined_index < run.plan_index;
    const bool died = !planned && !lost && run.failure.rank() == placement.rank();
    if (!lives || at->drained || died) continue;
    (id == node ? here : elsewhere) = true;
  }
  bool last = false;
  for (const auto& [of, where] : held) {
    const auto [here, elsewhere] = where;
    if (!here && !elsewhere) return false;
    last = last || !elsewhere;
  }
  return last;
}

std::vector<Buddy> BuddiesOf(const v1::GenerationStarted& plan) {
  std::set<NodeId> nodes;
  std::map<std::int32_t, std::pair<std::int32_t, NodeId>> first;  // by state: rank, node
  std::set<std::int32_t> spread;                                  // states on several nodes
  for (const v1::RankPlacement& placement : plan.placements()) {
    const NodeId node{placement.node_id()};
    const std::int32_t state = StateOf(plan.layout(), placement.rank());
    nodes.insert(node);
    const auto [known, added] = first.try_emplace(state, placement.rank(), node);
    if (!added && known->second.second != node) spread.insert(state);
  }
  std::vector<Buddy> buddies;
  if (nodes.size() < 2) return buddies;
  for (const auto& [state, where] : first) {  // states are numbered as their first ranks are
    if (spread.contains(state)) continue;
    auto next = std::next(nodes.find(where.second));
    if (next == nodes.end()) next = nodes.begin();
    buddies.push_back({.rank = where.first, .node = where.second, .buddy = *next});
  }
  return buddies;
}

}  // namespace paceline::core
