// The metrics that an agent serves, made afresh from its state at every scrape: a generation that
// has ended has no series left, without anyone having to remove them.
// Threading: pure function.
#pragma once

#include <string>
#include <vector>

#include "worker/telemetry/agent_view.h"

namespace prometheus {
struct MetricFamily;
}

namespace paceline {

// docs/metrics.md lists them. `host` and `version` label paceline_agent_info.
std::vector<prometheus::MetricFamily> AgentMetricFamilies(const AgentView& view,
                                                          const std::string& host,
                                                          const std::string& version);

}  // namespace paceline
