#include "coordinator/core/planner.h"

#include <algorithm>
#include <cstdint>

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

Plan PlanFor(const RunFile& file, const std::vector<FreeNode>& free) {
  Plan plan;
  absl::StatusOr<v1::Layout> layout = LayoutFor(file);
  if (!layout.ok()) {
    plan.reason = std::string(layout.status().message());
    return plan;
  }
  plan.layout = *layout;
  const std::int64_t world = file.WorldSize();
  std::int64_t slots = 0;
  std::int64_t nodes = 0;
  for (const FreeNode& node : free) {
    if (slots >= world) break;
    slots += std::min<std::int64_t>(node.slots, file.launch.slots_per_node);
    ++nodes;
  }
  if (slots < world) {
    plan.reason =
        absl::StrCat("waits for ", Count(world, "slot"), " (", Count(file.launch.nodes, "node"),
                     " of ", file.launch.slots_per_node, "); ", Count(slots, "slot"), " on ",
                     Count(nodes, "node"), slots == 1 ? " is" : " are", " free");
    return plan;
  }
  plan.fits = true;
  plan.reason = absl::StrCat(Count(world, "rank"), " on ", Count(nodes, "node"));
  plan.placements.reserve(static_cast<std::size_t>(world));
  for (const FreeNode& node : free) {
    const std::int64_t left = world - static_cast<std::int64_t>(plan.placements.size());
    const std::int64_t take =
        std::min({left, std::int64_t{node.slots}, file.launch.slots_per_node});
    for (std::int64_t slot = 0; slot < take; ++slot) {
      v1::RankPlacement& placement = plan.placements.emplace_back();
      placement.set_rank(static_cast<std::int32_t>(plan.placements.size() - 1));
      placement.set_node_id(node.id.value());
      placement.set_slot(static_cast<std::int32_t>(slot));
    }
  }
  return plan;
}

}  // namespace paceline::core
