#include "coordinator/core/stragglers.h"

#include <algorithm>
#include <map>

namespace paceline::core {
namespace {

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

std::vector<Straggler> StragglersOf(const v1::RunStatus& status) {
  const std::int32_t expert = std::max(1, status.layout().expert());
  const std::int32_t stages = std::max(1, status.layout().pipeline());
  const auto stage_of = [&](std::int32_t rank) { return rank / expert % stages; };
  const auto seconds_of = [](const v1::RankProgress& rank) {
    return rank.tokens() > 0 ? rank.compute_seconds() / static_cast<double>(rank.tokens()) : 0;
  };
  std::map<std::int32_t, std::vector<double>> of_stage;
  for (const v1::RankProgress& rank : status.ranks()) {
    of_stage[stage_of(rank.rank())].push_back(seconds_of(rank));
  }
  std::map<std::int32_t, double> medians;
  for (const auto& [stage, seconds] : of_stage) {
    const bool all_tell =
        std::all_of(seconds.begin(), seconds.end(), [](double each) { return each > 0; });
    if (all_tell) medians[stage] = Median(seconds);
  }
  std::vector<Straggler> stragglers;
  for (const v1::RankProgress& rank : status.ranks()) {
    const auto median = medians.find(stage_of(rank.rank()));
    if (median == medians.end()) continue;
    const double ratio = seconds_of(rank) / median->second;
    if (ratio >= kStragglerRatio) stragglers.push_back({rank.rank(), ratio});
  }
  return stragglers;
}

}  // namespace paceline::core
