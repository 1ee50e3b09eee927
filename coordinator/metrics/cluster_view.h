// What monitoring sees of runs and nodes: metric families, and the answer of service discovery.
// Invariant: made anew from one look at the core, so nothing that has gone stays; of ended runs
// only the last kEndedRunsMax are shown, so the number of series is bounded.
// Threading: plain values and pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "paceline/v1/coordinator.pb.h"

namespace prometheus {
struct MetricFamily;
}

namespace paceline {

struct ClusterView {
  static constexpr std::size_t kEndedRunsMax = 32;

  std::vector<v1::RunStatus> runs;
  std::vector<v1::NodeStatus> nodes;  // alive
};

std::vector<prometheus::MetricFamily> ClusterFamilies(const ClusterView& view);

// Prometheus's HTTP service discovery: this coordinator, and each live agent that serves metrics,
// with the node's name and the run that it trains as labels.
std::string DiscoveryJson(const ClusterView& view, const std::string& coordinator_address);

}  // namespace paceline
