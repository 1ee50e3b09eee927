#include "coordinator/core/planner.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/parallel_layout.h"
#include "common/planning/prediction.h"
#include "coordinator/core/limits.h"
#include "coordinator/core/restore.h"

namespace paceline::core {
namespace {

std::string Count(std::int64_t n, const char* noun) {
  return absl::StrCat(n, " ", noun, n == 1 ? "" : "s");
}

v1::Layout MessageOf(const ParallelLayout& layout) {
  v1::Layout message;
  message.set_pipeline(layout.pipeline);
  message.set_data(layout.data);
  message.set_expert(layout.expert);
  message.set_schedule(layout.schedule);
  message.set_virtual_stages(layout.virtual_stages);
  message.set_shard_optimizer(layout.shard_optimizer);
  return message;
}

std::int64_t MicroBatches(const RunFile& file) {
  return file.train.global_batch_size / file.train.micro_batch_size;
}

double FullestRank(const RunFile& file, const ParallelLayout& layout) {
  const planning::Machine machine = planning::CpuMachine(file);
  double most = 0;
  for (const int stage : {0, layout.pipeline - 1}) {
    const planning::Candidate candidate{layout, file.train.micro_batch_size};
    most = std::max(most, planning::MemoryOf(file, candidate, machine, stage).total());
  }
  return most;
}

// Where not one copy of the stages and expert groups that were asked for fits.
std::optional<ParallelLayout> LeastMemoryOn(const RunFile& file, std::int64_t slots) {
  const ModelSection& model = file.model;
  const std::int64_t stages_max =
      model.tie_word_embeddings ? 1 : std::min(slots, model.num_hidden_layers);
  const std::int64_t experts = std::max<std::int64_t>(model.n_routed_experts, 1);
  std::optional<ParallelLayout> best;
  std::tuple<double, int, int> best_rank;  // memory, ranks (negative), stages
  for (int pipeline = 1; pipeline <= stages_max; ++pipeline) {
    for (int expert = 1; pipeline * expert <= slots; ++expert) {
      if (experts % expert != 0) continue;
      ParallelLayout layout = LayoutOf(file);
      layout.pipeline = pipeline;
      layout.expert = expert;
      layout.virtual_stages = 1;
      if (layout.schedule == "interleaved") layout.schedule = "1f1b";
      const std::int64_t copies =
          std::min(slots / (pipeline * expert), MicroBatches(file) / expert);
      layout.data = static_cast<int>(copies) * expert;
      if (copies < 1 || !CheckMicroBatches(layout, MicroBatches(file)).ok()) continue;
      const std::tuple rank{FullestRank(file, layout), -layout.world_size(), pipeline};
      if (best && rank >= best_rank) continue;
      best = layout;
      best_rank = rank;
    }
  }
  return best;
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
  return MessageOf(LayoutOf(file));
}

absl::StatusOr<v1::Layout> LayoutOn(const RunFile& file, std::int64_t slots) {
  ASSIGN_OR_RETURN(v1::Layout asked, LayoutFor(file));
  if (slots >= file.WorldSize()) return asked;
  ParallelLayout layout = LayoutOf(file);
  const std::int64_t copy = layout.pipeline * layout.expert;
  for (std::int64_t copies = slots / copy; copies > 0; --copies) {
    layout.data = static_cast<int>(copies) * layout.expert;
    if (CheckMicroBatches(layout, MicroBatches(file)).ok()) return MessageOf(layout);
  }
  const std::optional<ParallelLayout> least = LeastMemoryOn(file, slots);
  if (least) return MessageOf(*least);
  return absl::InvalidArgumentError(
      absl::StrCat("no layout of [train] global_batch_size = ", file.train.global_batch_size,
                   " fits ", Count(slots, "slot")));
}

bool SameLayout(const v1::Layout& a, const v1::Layout& b) {
  return a.pipeline() == b.pipeline() && a.data() == b.data() && a.expert() == b.expert() &&
         a.schedule() == b.schedule() && a.virtual_stages() == b.virtual_stages() &&
         a.shard_optimizer() == b.shard_optimizer();
}

namespace {

using Place = std::pair<std::uint64_t, std::int32_t>;  // node, slot

std::int64_t SlotsOf(const RunFile& file, const FreeNode& node) {
  return std::min<std::int64_t>(node.slots, file.launch.slots_per_node);
}

// Where ranks of the new layout find their state: by place, the new rank.
std::map<Place, std::int32_t> StayingRanks(const std::map<Place, std::int32_t>& former_ranks,
                                           const v1::Layout& former, const v1::Layout& layout) {
  const std::int32_t world = layout.pipeline() * layout.data();
  std::map<Place, std::int32_t> stays;
  std::set<std::int32_t> taken;
  for (const auto& [place, rank] : former_ranks) {
    if (rank >= world) continue;
    stays[place] = rank;  // the same number: the same state
    taken.insert(rank);
  }
  std::map<std::int32_t, std::vector<std::int32_t>> open;  // by state, the highest rank first
  for (std::int32_t rank = world; rank-- > 0;) {
    if (!taken.contains(rank)) open[StateOf(layout, rank)].push_back(rank);
  }
  for (const auto& [place, rank] : former_ranks) {
    if (stays.contains(place)) continue;
    const auto found = open.find(StateOf(former, rank));
    if (found == open.end() || found->second.empty()) continue;
    stays[place] = found->second.back();
    found->second.pop_back();
  }
  return stays;
}

std::string Missing(const RunFile& file, std::int64_t nodes, std::int64_t slots) {
  const LaunchSection& launch = file.launch;
  const std::string here = absl::StrCat(Count(slots, "slot"), " on ", Count(nodes, "node"),
                                        slots == 1 ? " is" : " are", " free");
  if (nodes >= launch.MinNodes() || launch.MinNodes() == launch.nodes) {
    return absl::StrCat("waits for ", Count(file.WorldSize(), "slot"), " (",
                        Count(launch.nodes, "node"), " of ", launch.slots_per_node, "); ", here);
  }
  return absl::StrCat("waits for at least [launch] min_nodes = ", launch.MinNodes(), " of its ",
                      Count(launch.nodes, "node"), "; ", here);
}

// Nodes with ranks of `former` that may stay; none where its state is another.
std::set<std::uint64_t> StayOn(const RunFile& file, const std::vector<FreeNode>& free,
                               const v1::GenerationStarted& former, const v1::Layout& layout) {
  std::set<std::uint64_t> stay_on;
  if (!former.has_layout() || !SameState(former.layout(), layout)) return stay_on;
  std::map<std::uint64_t, std::int64_t> room;
  for (const FreeNode& node : free) {
    if (node.stays) room[node.id.value()] = SlotsOf(file, node);
  }
  for (const v1::RankPlacement& rank : former.placements()) {
    const auto node = room.find(rank.node_id());
    if (node != room.end() && rank.slot() < node->second) stay_on.insert(rank.node_id());
  }
  return stay_on;
}

// The nodes to take for `world` ranks: those to stay on first, then those that failed least.
std::vector<FreeNode> NodesToTake(const RunFile& file, std::vector<FreeNode> nodes,
                                  const std::set<std::uint64_t>& stay_on, std::int64_t world) {
  const auto order = [&](const FreeNode& node) {
    return std::tuple{!stay_on.contains(node.id.value()), node.failures, node.id.value()};
  };
  std::stable_sort(nodes.begin(), nodes.end(),
                   [&order](const FreeNode& a, const FreeNode& b) { return order(a) < order(b); });
  std::size_t taken = 0;
  for (std::int64_t have = 0; taken < nodes.size() && have < world; ++taken) {
    have += SlotsOf(file, nodes[taken]);
  }
  nodes.resize(taken);
  return nodes;
}

// Ranks that stay, then the others on the places that are left, node by node.
std::vector<v1::RankPlacement> PlaceRanks(const RunFile& file, const std::vector<FreeNode>& nodes,
                                          const std::map<Place, std::int32_t>& stays,
                                          std::int64_t world) {
  std::vector<v1::RankPlacement> placements(static_cast<std::size_t>(world));
  const auto place = [&placements](std::int32_t rank, const Place& at) {
    v1::RankPlacement& placement = placements[static_cast<std::size_t>(rank)];
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
  for (const FreeNode& node : nodes) {
    for (std::int32_t slot = 0; slot < SlotsOf(file, node); ++slot) {
      const Place at = {node.id.value(), slot};
      if (stays.contains(at)) continue;
      while (placed.contains(next)) ++next;
      if (next >= world) return placements;
      place(next++, at);
    }
  }
  return placements;
}

}  // namespace

Plan PlanFor(const RunFile& file, const std::vector<FreeNode>& free,
             const v1::GenerationStarted& former) {
  Plan plan;
  std::int64_t slots = 0;
  for (const FreeNode& node : free) slots += SlotsOf(file, node);
  const std::int64_t asked = file.WorldSize();
  const auto nodes_free = static_cast<std::int64_t>(free.size());
  if (slots < asked) plan.missing = Missing(file, nodes_free, slots);
  if (slots < asked && nodes_free < std::max<std::int64_t>(file.launch.MinNodes(), 1)) {
    plan.reason = plan.missing;
    return plan;
  }
  absl::StatusOr<v1::Layout> layout = LayoutOn(file, slots);
  if (!layout.ok()) {
    plan.reason = std::string(layout.status().message());
    return plan;
  }
  plan.fits = true;
  plan.whole = slots >= asked;
  plan.layout = *layout;
  const std::int64_t world = std::int64_t{plan.layout.pipeline()} * plan.layout.data();
  const std::set<std::uint64_t> stay_on = StayOn(file, free, former, plan.layout);
  const std::vector<FreeNode> nodes = NodesToTake(file, free, stay_on, world);
  plan.reason = absl::StrCat(Count(world, "rank"), " on ",
                             Count(static_cast<std::int64_t>(nodes.size()), "node"));
  if (!plan.whole) {
    absl::StrAppend(&plan.reason, ", fewer than the ", asked, " on ", file.launch.nodes,
                    " asked for");
  }
  std::map<std::uint64_t, std::int64_t> stay_room;
  for (const FreeNode& node : nodes) {
    if (stay_on.contains(node.id.value())) stay_room[node.id.value()] = SlotsOf(file, node);
  }
  std::map<Place, std::int32_t> former_ranks;
  for (const v1::RankPlacement& rank : former.placements()) {
    const auto node = stay_room.find(rank.node_id());
    if (node == stay_room.end() || rank.slot() >= node->second) continue;
    former_ranks[{rank.node_id(), rank.slot()}] = rank.rank();
  }
  plan.placements =
      PlaceRanks(file, nodes, StayingRanks(former_ranks, former.layout(), plan.layout), world);
  return plan;
}

}  // namespace paceline::core
