// Prometheus's text format for what a registry (or any Collectable) collects.
// Threading: any thread.
#pragma once

#include <string>
#include <vector>

#include "common/http_server.h"

namespace prometheus {
struct MetricFamily;
}

namespace paceline {

std::string SerializeMetrics(const std::vector<prometheus::MetricFamily>& families);

// The answer to GET /metrics: `SerializeMetrics(registry.Collect())` with its content type.
HttpResponse MetricsResponse(const std::vector<prometheus::MetricFamily>& families);

}  // namespace paceline
