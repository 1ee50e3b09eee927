#include "coordinator/core/planner.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/parallel_layout.h"
#include "coordinator/core/limits.h"

namespace paceline::core {
namespace {

std::string Count(std::int64_t n, const char* noun) {
  return absl::StrCat(n, " ", noun, n == 1 ? "" : "s");
}

}  // namespace

absl::StatusOr<v1::Layout> LayoutFor(const RunFile& file) {
  const std::int64_t world = file.WorldSize();
  if (world < 1 || world > kMaxWorldSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("[launch] nodes x slots_per_node = ", world, ": give 1 to ", kMaxWorldSize));
  }
  const std::int64_t data = file.DataParallel();
  const std::int64_t micro_batches = file.train.micro_batch_size * data;
  if (micro_batches < 1 || file.train.global_batch_size % micro_batches != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "[train] global_batch_size = ", file.train.global_batch_size, " does not split over ", data,
        " data-parallel ranks x micro_batch_size = ", file.train.micro_batch_size,
        "; give a multiple of ", micro_batches));
  }
  const ParallelLayout asked = LayoutOf(file);
  v1::Layout layout;
  layout.set_pipeline(asked.pipeline);
  layout.set_data(asked.data);
  layout.set_expert(asked.expert);
  layout.set_schedule(asked.schedule);
  layout.set_virtual_stages(asked.virtual_stages);
  layout.set_shard_optimizer(asked.shard_optimizer);
  return layout;
}

bool SameLayout(const v1::Layout& a, const v1::Layout& b) {
  return a.pipeline() == b.pipeline() && a.data() == b.data() && a.expert() == b.expert() &&
         a.schedule() == b.schedule() && a.virtual_stages() == b.virtual_stages() &&
         a.shard_optimizer() == b.shard_optimizer();
}

Plan PlanFor(const RunFile& file, const std::vector<FreeNode>& free,
             const v1::GenerationStarted& former) {
  Plan plan;
  absl::StatusOr<v1::Layout> layout = LayoutFor(file);
  if (!layout.ok()) {
    plan.reason = std::string(layout.status().message());
    return plan;
  }
  plan.layout = *layout;
  const std::int64_t world = file.WorldSize();
  const auto slots_of = [&file](const FreeNode& node) {
    return std::min<std::int64_t>(node.slots, file.launch.slots_per_node);
  };
  using Place = std::pair<std::uint64_t, std::int32_t>;  // node, slot
  std::map<Place, std::int32_t> stays;                   // ranks
  std::set<std::uint64_t> stay_on;
  if (former.placements_size() == world && SameLayout(former.layout(), plan.layout)) {
    std::map<std::uint64_t, std::int64_t> free_slots;
    for (const FreeNode& node : free) free_slots[node.id.value()] = slots_of(node);
    for (const v1::RankPlacement& rank : former.placements()) {
      const auto node = free_slots.find(rank.node_id());
      if (node == free_slots.end() || rank.slot() >= node->second) continue;
      stays[{rank.node_id(), rank.slot()}] = rank.rank();
      stay_on.insert(rank.node_id());
    }
  }
  std::vector<FreeNode> nodes = free;
  std::stable_partition(nodes.begin(), nodes.end(), [&stay_on](const FreeNode& node) {
    return stay_on.contains(node.id.value());
  });
  std::int64_t slots = 0;
  std::size_t taken = 0;
  for (; taken < nodes.size() && slots < world; ++taken) slots += slots_of(nodes[taken]);
  const auto node_count = static_cast<std::int64_t>(taken);
  if (slots < world) {
    plan.reason =
        absl::StrCat("waits for ", Count(world, "slot"), " (", Count(file.launch.nodes, "node"),
                     " of ", file.launch.slots_per_node, "); ", Count(slots, "slot"), " on ",
                     Count(node_count, "node"), slots == 1 ? " is" : " are", " free");
    return plan;
  }
  plan.fits = true;
  plan.reason = absl::StrCat(Count(world, "rank"), " on ", Count(node_count, "node"));
  plan.placements.resize(static_cast<std::size_t>(world));
  const auto place = [&plan](std::int32_t rank, const Place& at) {
    v1::RankPlacement& placement = plan.placements[static_cast<std::size_t>(rank)];
    placement.set_rank(rank);
    placement.set_node_id(at.first);
    placement.set_slot(at.second);
  };
  std::set<std::int32_t> placed;
  for (const auto& [at, rank] : stays) {
    place(rank, at);
    placed.insert(rank);
  }
  std::int32_t next = 0;
  for (std::size_t i = 0; i < taken; ++i) {
    for (std::int32_t slot = 0; slot < slots_of(nodes[i]); ++slot) {
      const Place at = {nodes[i].id.value(), slot};
      if (stays.contains(at)) continue;
      while (placed.contains(next)) ++next;
      if (next >= world) return plan;
      place(next++, at);
    }
  }
  return plan;
}

}  // namespace paceline::core
