#include "coordinator/core/phases.h"

#include <algorithm>
#include <utility>

namespace paceline::core {

void PhaseClock::Enter(v1::RunPhase phase, std::int64_t at_ms) {
  if (phase == phase_) return;
  over_ = Until(at_ms);
  phase_ = phase;
  since_ms_ = at_ms;
}

std::map<v1::RunPhase, std::int64_t> PhaseClock::Until(std::int64_t now_ms) const {
  std::map<v1::RunPhase, std::int64_t> times = over_;
  if (phase_ != v1::RUN_PHASE_UNSPECIFIED) {
    times[phase_] += std::max<std::int64_t>(0, now_ms - since_ms_);
  }
  return times;
}

}  // namespace paceline::core
