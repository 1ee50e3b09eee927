#include "common/parallel_layout.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {
namespace {

std::vector<int> RanksWhere(const ParallelLayout& layout, auto belongs) {
  std::vector<int> ranks;
  for (int rank = 0; rank < layout.world_size(); ++rank) {
    if (belongs(CoordinatesOf(layout, rank))) ranks.push_back(rank);
  }
  return ranks;
}

// Costs of the layers; the head counts with the last. The embedding is a lookup: no FLOPs.
std::vector<double> LayerCosts(const ModelSection& model, std::int64_t sequence) {
  std::vector<double> costs;
  for (std::int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    costs.push_back(LayerFlopsPerToken(model, layer, sequence));
  }
  costs.back() += HeadFlopsPerToken(model);
  return costs;
}

}  // namespace

ParallelLayout LayoutOf(const RunFile& run_file) {
  ParallelLayout layout;
  layout.pipeline = static_cast<int>(run_file.layout.pipeline);
  layout.data = static_cast<int>(run_file.DataParallel());
  layout.expert = static_cast<int>(run_file.layout.expert);
  layout.virtual_stages = static_cast<int>(run_file.layout.virtual_stages);
  layout.schedule = run_file.layout.schedule;
  layout.shard_optimizer = run_file.layout.zero == 1;
  return layout;
}

RankCoordinates CoordinatesOf(const ParallelLayout& layout, int rank) {
  PACELINE_CHECK(rank >= 0 && rank < layout.world_size());
  RankCoordinates at;
  at.expert = rank % layout.expert;
  at.stage = rank / layout.expert % layout.pipeline;
  at.expert_data = rank / (layout.expert * layout.pipeline);
  at.data = at.expert_data * layout.expert + at.expert;
  return at;
}

int RankAt(const ParallelLayout& layout, int stage, int data) {
  return (data / layout.expert * layout.pipeline + stage) * layout.expert + data % layout.expert;
}

namespace {

// Micro-batches of one expert rank that cannot be told apart: an interleaved schedule's groups.
std::int64_t MicroBatchUnit(const ParallelLayout& layout) {
  return layout.schedule == "interleaved" ? layout.pipeline : 1;
}

}  // namespace

absl::Status CheckMicroBatches(const ParallelLayout& layout, std::int64_t total) {
  const std::int64_t unit = layout.expert * MicroBatchUnit(layout);
  if (total % unit == 0 && total / unit >= layout.expert_data()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a step's ", total, " micro-batches do not spread over ", layout.expert_data(),
                   " groups that take a multiple of ", unit, " each"));
}

MicroBatchRange MicroBatchesOf(const ParallelLayout& layout, int data, std::int64_t total) {
  const std::int64_t unit = MicroBatchUnit(layout);
  const std::int64_t units = total / (layout.expert * unit);
  const std::int64_t groups = layout.expert_data();
  const std::int64_t group = data / layout.expert;
  const std::int64_t count = unit * (units / groups + (group < units % groups ? 1 : 0));
  const std::int64_t before = unit * (units / groups * group + std::min(group, units % groups));
  return {.first = before * layout.expert + data % layout.expert,
          .count = count,
          .stride = layout.expert};
}

std::vector<int> PipelineGroup(const ParallelLayout& layout, int rank) {
  const int data = CoordinatesOf(layout, rank).data;
  return RanksWhere(layout, [&](const RankCoordinates& at) { return at.data == data; });
}

std::vector<int> DataGroup(const ParallelLayout& layout, int rank) {
  const int stage = CoordinatesOf(layout, rank).stage;
  return RanksWhere(layout, [&](const RankCoordinates& at) { return at.stage == stage; });
}

std::vector<int> ExpertGroup(const ParallelLayout& layout, int rank) {
  const RankCoordinates own = CoordinatesOf(layout, rank);
  return RanksWhere(layout, [&](const RankCoordinates& at) {
    return at.stage == own.stage && at.expert_data == own.expert_data;
  });
}

std::vector<int> ExpertDataGroup(const ParallelLayout& layout, int rank) {
  const RankCoordinates own = CoordinatesOf(layout, rank);
  return RanksWhere(layout, [&](const RankCoordinates& at) {
    return at.stage == own.stage && at.expert == own.expert;
  });
}

std::vector<LayerRange> SplitLayers(const ModelSection& model, std::int64_t sequence, int parts) {
  const std::vector<double> costs = LayerCosts(model, sequence);
  const std::size_t layers = costs.size();
  const auto count = static_cast<std::size_t>(parts);
  PACELINE_CHECK(parts >= 1 && count <= layers);
  std::vector<double> before(layers + 1, 0.0);  // cost of the first n layers
  for (std::size_t i = 0; i < layers; ++i) before[i + 1] = before[i] + costs[i];
  // worst[p][n]: the costliest of p ranges over the first n layers, at best; from[p][n]: where the
  // last of them then begins.
  const double none = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> worst(count + 1, std::vector<double>(layers + 1, none));
  std::vector<std::vector<std::size_t>> from(count + 1, std::vector<std::size_t>(layers + 1, 0));
  worst[0][0] = 0;
  for (std::size_t p = 1; p <= count; ++p) {
    for (std::size_t n = p; n <= layers; ++n) {
      for (std::size_t begin = p - 1; begin < n; ++begin) {
        const double cost = std::max(worst[p - 1][begin], before[n] - before[begin]);
        if (cost >= worst[p][n]) continue;
        worst[p][n] = cost;
        from[p][n] = begin;
      }
    }
  }
  std::vector<LayerRange> ranges(count);
  std::size_t end = layers;
  for (std::size_t p = count; p > 0; --p) {
    const std::size_t begin = from[p][end];
    ranges[p - 1] = {static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)};
    end = begin;
  }
  return ranges;
}

ModelPart PartOf(const RunFile& run_file, const ParallelLayout& layout, int rank) {
  const RankCoordinates at = CoordinatesOf(layout, rank);
  const std::vector<LayerRange> ranges = SplitLayers(run_file.model, run_file.train.sequence_length,
                                                     layout.pipeline * layout.virtual_stages);
  ModelPart part;
  for (int segment = 0; segment < layout.virtual_stages; ++segment) {
    part.segments.push_back(ranges[static_cast<std::size_t>(segment * layout.pipeline + at.stage)]);
  }
  const std::int64_t experts = run_file.model.n_routed_experts / layout.expert;
  part.first_expert = at.expert * experts;
  part.end_expert = part.first_expert + experts;
  return part;
}

}  // namespace paceline
