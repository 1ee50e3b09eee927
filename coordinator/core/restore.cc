#include "coordinator/core/restore.h"

#include <functional>
#include <set>
#include <utility>

#include "common/parallel_layout.h"
#include "coordinator/core/planner.h"

namespace paceline::core {

bool SameState(const v1::Layout& a, const v1::Layout& b) {
  if (SameLayout(a, b)) return true;
  return a.pipeline() == b.pipeline() && a.expert() == b.expert() &&
         a.virtual_stages() == b.virtual_stages() && !a.shard_optimizer() && !b.shard_optimizer();
}

// rank = (copy * pipeline + stage) * expert + expert index, as common/parallel_layout.h has it.
std::int32_t StateOf(const v1::Layout& layout, std::int32_t rank) {
  return layout.shard_optimizer() ? rank : rank % (layout.pipeline() * layout.expert());
}

HeldSteps HeldInPlace(const Run& run, const HeldSteps& held, const v1::Layout& layout,
                      const std::vector<v1::RankPlacement>& placements) {
  HeldSteps in_place;
  if (held.empty() || !SameState(run.plan.layout(), layout)) return in_place;
  using Place = std::pair<std::uint64_t, std::int32_t>;          // node, slot
  std::map<Place, std::pair<std::int32_t, std::int64_t>> there;  // former rank, step
  for (const auto& [rank, step] : held) {
    const v1::RankPlacement& at = run.plan.placements(rank);
    there[{at.node_id(), at.slot()}] = {rank, step};
  }
  for (const v1::RankPlacement& placement : placements) {
    const auto found = there.find({placement.node_id(), placement.slot()});
    if (found == there.end()) continue;
    const auto& [former, step] = found->second;
    if (StateOf(run.plan.layout(), former) == StateOf(layout, placement.rank())) {
      in_place[placement.rank()] = step;
    }
  }
  return in_place;
}

RestorePoint RestoreFor(const Run& run, const v1::Layout& layout, const HeldSteps& held) {
  const RestorePoint from_disk = {.step = run.CommittedStep()};
  const std::int32_t world = layout.pipeline() * layout.data();
  std::set<std::int64_t, std::greater<>> steps;
  for (const auto& [rank, step] : held) {
    if (step > 0 && step >= run.CommittedStep() && step <= run.GrantedUntil()) steps.insert(step);
  }
  for (const std::int64_t step : steps) {
    std::map<std::int32_t, std::vector<std::int32_t>> holders;
    for (const auto& [rank, at] : held) {
      if (at == step) holders[StateOf(layout, rank)].push_back(rank);
    }
    RestorePoint restore = {.live = true, .step = step};
    bool covered = true;
    for (std::int32_t rank = 0; rank < world && covered; ++rank) {
      const auto own = held.find(rank);
      if (own != held.end() && own->second == step) continue;
      const auto found = holders.find(StateOf(layout, rank));
      covered = found != holders.end();
      if (!covered) break;
      v1::StateTransfer& transfer = restore.transfers.emplace_back();
      // Several that need it get it from several, as far as there are.
      transfer.set_from(found->second[restore.transfers.size() % found->second.size()]);
      transfer.set_to(rank);
    }
    if (covered) return restore;
  }
  return from_disk;
}

}  // namespace paceline::core
