// What members hold of a run's state, inside Core: what they tell of it, which of it the run's next
// generation takes up, and who is told to forget the rest.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/limits.h"
#include "coordinator/core/runs.h"

namespace paceline::core {
namespace {

// Runs whose forgetting is remembered of a node. Forgotten itself, one is told once more.
constexpr std::size_t kMaxToldToForget = 64;

}  // namespace

void Core::Impl::NoteHeld(NodeId id, const v1::GenerationGone& gone) {
  const Run* run = state_.FindRun(gone.key().run_id());
  if (run == nullptr || run->ended() || run->generation_open ||
      run->generation.value() != gone.key().generation()) {
    return;
  }
  // It said so before it heard that nobody wants it.
  const NodeRuntime& runtime = nodes_.at(id);
  const auto told = runtime.told_to_forget.find(run->id());
  const bool forgets =
      told != runtime.told_to_forget.end() && told->second >= gone.key().generation();
  if (forgets || runtime.released) return;
  Held& known = held_[run->id()];
  const auto is_here = [run, id](std::int32_t rank) {
    return run->plan.placements(rank).node_id() == id.value();
  };
  std::erase_if(known.live, [&is_here](const auto& entry) { return is_here(entry.first); });
  known.snapshots.erase(id);
  for (const v1::HeldState& held : gone.held()) {
    const std::int32_t rank = held.rank();
    if (rank < 0 || rank >= kMaxWorldSize) continue;
    if (held.snapshot()) {
      known.snapshots[id][rank].insert(held.step());
    } else if (rank < run->plan.placements_size() && is_here(rank)) {
      known.live[rank] = held.step();
    }
  }
}

RestorePoint Core::Impl::RestoreWith(const Run& run, const Plan& plan) const {
  const auto known = held_.find(run.id());
  Held held = known == held_.end() || MayBeCorrupt(run) ? Held() : known->second;
  if (const auto bad = distrusted_.find(run.id()); bad != distrusted_.end()) {
    for (const auto& [node, rank] : bad->second) {
      if (const auto at = held.snapshots.find(node); at != held.snapshots.end()) {
        at->second.erase(rank);
      }
    }
  }
  return RestoreFor(run, held, plan.layout, plan.placements, [this](NodeId node) {
    return !state_.nodes.at(node).info.snapshot_address().empty();
  });
}

std::string Core::Impl::WhyFromDisk(const Run& run, const RestorePoint& restore) const {
  if (restore.live || run.generation < run.first_generation || run.last_step <= restore.step)
    return "";
  const std::string from = run.checkpoints.empty()
                               ? "from the beginning"
                               : absl::StrCat("from the checkpoint of step ", run.CommittedStep());
  if (MayBeCorrupt(run)) return absl::StrCat("what memory holds may be corrupt: ", from);
  if (!restore.missing) {
    return absl::StrCat("memory holds no step that ranks of this layout could begin from: ", from);
  }
  const v1::Layout& layout = run.plan.layout();
  const std::int32_t state = core::StateOf(layout, *restore.missing);
  const auto name = [this](NodeId id) {
    const Node* node = state_.FindNode(id);
    return node == nullptr ? absl::StrCat("node ", id.value()) : node->info.name();
  };
  for (const Buddy& buddy : BuddiesOf(run.plan)) {
    if (core::StateOf(layout, buddy.rank) != state) continue;
    return absl::StrCat("neither ", name(buddy.node), " nor its buddy ", name(buddy.buddy),
                        " holds the state of rank ", *restore.missing, " any more: ", from);
  }
  return absl::StrCat("no node holds the state of rank ", *restore.missing, " any more: ", from);
}

void Core::Impl::AddSnapshots(const Run& run, NodeId node, v1::StartGeneration& start) const {
  const GenerationRuntime& generation = generations_.at(run.id());
  const auto copies = generation.copies.find(node);
  if (copies != generation.copies.end() && run.file.failure.snapshot_interval_steps > 0) {
    for (const Buddy& buddy : copies->second) {
      const v1::RegisterNode& from = state_.nodes.at(buddy.node).info;
      if (from.snapshot_address().empty()) continue;
      v1::SnapshotCopy& copy = *start.add_copies();
      copy.set_rank(buddy.rank);
      copy.set_address(from.snapshot_address());
      copy.set_node(from.name());
    }
  }
  for (const v1::SnapshotSource& source : run.plan.sources()) {
    if (generation.ranks[static_cast<std::size_t>(source.to())].node != node) continue;
    const Node* from = state_.FindNode(NodeId{source.node_id()});
    v1::SnapshotSource& told = *start.add_sources();
    told = source;
    if (from == nullptr) continue;
    told.set_address(from->info.snapshot_address());
    told.set_node(from->info.name());
  }
}

void Core::Impl::Distrust(const Run& run, const GenerationRuntime& generation,
                          const v1::RankFailed& failure) {
  if (generation.stepped) distrusted_.erase(run.id());
  if (!failure.has_key() || failure.cause() == v1::FAILURE_CAUSE_NODE_LOST) return;
  for (const v1::SnapshotSource& source : run.plan.sources()) {
    if (source.to() != failure.rank()) continue;
    if (generation.ranks[static_cast<std::size_t>(source.to())].ready) continue;
    distrusted_[run.id()].insert({NodeId{source.node_id()}, source.from()});
  }
}

void Core::Impl::ForgetHeld(const v1::GenerationStarted& former) {
  std::set<NodeId> nodes;
  for (const v1::RankPlacement& placement : former.placements()) {
    nodes.insert(NodeId{placement.node_id()});
  }
  for (const NodeId id : nodes) {
    if (nodes_.contains(id)) ForgetStale(id, former.key());
  }
}

void Core::Impl::ForgetStale(NodeId id, const v1::GenerationKey& key) {
  const Run* run = state_.FindRun(key.run_id());
  if (run == nullptr || nodes_.at(id).released) return;
  if (key.generation() > run->generation.value()) return;
  if (run->ended()) return SendForget(id, key);
  const auto open = generations_.find(run->id());
  if (open == generations_.end() || key.generation() == run->generation.value() ||
      open->second.ranks_of.contains(id)) {
    return;
  }
  GenerationRuntime& generation = open->second;
  const auto& sources = run->plan.sources();
  const bool needed = generation.ready < generation.ranks.size() &&
                      std::any_of(sources.begin(), sources.end(), [id](const auto& source) {
                        return source.node_id() == id.value();
                      });
  if (!needed) return SendForget(id, key);
  std::vector<NodeId>& later = generation.forget_later;
  if (std::find(later.begin(), later.end(), id) == later.end()) later.push_back(id);
}

void Core::Impl::ForgetLater(GenerationRuntime& generation) {
  v1::GenerationKey former = generation.key;
  former.set_generation(former.generation() - 1);
  for (const NodeId id : std::exchange(generation.forget_later, {})) {
    if (nodes_.contains(id)) SendForget(id, former);
  }
}

void Core::Impl::SendForget(NodeId node, const v1::GenerationKey& key) {
  NodeRuntime& runtime = nodes_.at(node);
  if (!runtime.session) return;  // it says what it holds when it comes back
  if (runtime.told_to_forget.size() >= kMaxToldToForget) runtime.told_to_forget.clear();
  std::uint64_t& told = runtime.told_to_forget[key.run_id()];
  if (told >= key.generation()) return;
  told = key.generation();
  v1::CoordinatorMessage message;
  *message.mutable_end()->mutable_key() = key;
  message.mutable_end()->set_reason("the run goes on without what this node holds of it");
  message.mutable_end()->set_forget(true);
  Send(node, std::move(message));
}

}  // namespace paceline::core
