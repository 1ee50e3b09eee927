#include "coordinator/core/restore.h"

#include <functional>
#include <set>
#include <utility>

#include "common/parallel_layout.h"

namespace paceline::core {
namespace {

// Ranks of one key hold the same state.
std::pair<int, int> PlaceOf(const ParallelLayout& layout, int rank) {
  if (layout.shard_optimizer) return {rank, 0};
  const RankCoordinates at = CoordinatesOf(layout, rank);
  return {at.stage, at.expert};
}

}  // namespace

RestorePoint RestoreFor(const Run& run, const HeldSteps& held) {
  const RestorePoint from_disk = {.step = run.CommittedStep()};
  const ParallelLayout layout = LayoutOf(run.file);
  std::set<std::int64_t, std::greater<>> steps;
  for (const auto& [rank, at] : held) {
    for (const std::int64_t step : at) {
      if (step > 0 && step >= run.CommittedStep() && step <= run.GrantedUntil()) steps.insert(step);
    }
  }
  for (const std::int64_t step : steps) {
    std::map<std::pair<int, int>, std::vector<std::int32_t>> holders;
    for (const auto& [rank, at] : held) {
      if (at.contains(step)) holders[PlaceOf(layout, rank)].push_back(rank);
    }
    RestorePoint restore = {.live = true, .step = step};
    bool covered = true;
    for (std::int32_t rank = 0; rank < layout.world_size() && covered; ++rank) {
      const auto own = held.find(rank);
      if (own != held.end() && own->second.contains(step)) continue;
      const auto found = holders.find(PlaceOf(layout, rank));
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
