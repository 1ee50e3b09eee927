#include "common/timeouts.h"

#include <algorithm>

namespace paceline {

Timeouts TimeoutsFor(std::int64_t budget_ms) {
  using std::chrono::milliseconds;
  const milliseconds budget{budget_ms};
  return {.heartbeat = std::max(budget / 10, milliseconds{20}),
          .lease = budget * 8 / 10,
          .collective = std::max(budget * 24, milliseconds{120'000}),
          .reconnect_max = std::max(budget / 5, milliseconds{50}),
          .startup = std::max(budget * 24, milliseconds{120'000}),
          .checkpoint = std::max(budget * 120, milliseconds{600'000}),
          .shutdown = std::max(budget, milliseconds{1'000})};
}

}  // namespace paceline
