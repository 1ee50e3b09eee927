#include "common/metrics_text.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

namespace paceline {

std::string SerializeMetrics(const std::vector<prometheus::MetricFamily>& families) {
  return prometheus::TextSerializer().Serialize(families);
}

HttpResponse MetricsResponse(const std::vector<prometheus::MetricFamily>& families) {
  return {.status = 200,
          .content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = SerializeMetrics(families)};
}

}  // namespace paceline
