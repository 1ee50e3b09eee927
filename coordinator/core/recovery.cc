#include "coordinator/core/recovery.h"

#include <algorithm>

namespace paceline::core {

v1::RecoveryTimes RecoveryClock::Times(std::int64_t load_ms, std::int64_t begin_ms,
                                       std::int64_t now_ms) const {
  std::int64_t at = well_ms;
  const auto until = [&at, now_ms](std::int64_t ms) {
    const std::int64_t from = at;
    at = std::max(from, std::min(ms, now_ms));
    return at - from;
  };
  v1::RecoveryTimes times;
  times.set_detect_ms(until(ended_ms));
  times.set_fence_ms(until(left_ms));
  times.set_regroup_ms(until(ready_ms - load_ms));
  times.set_restore_ms(until(ready_ms + begin_ms));
  times.set_first_step_ms(until(now_ms));
  return times;
}

}  // namespace paceline::core
