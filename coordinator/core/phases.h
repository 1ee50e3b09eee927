// What a run's time goes to: how long it was in each phase, by the journal's clock.
// Invariant: of a run that is watched from its submission the phases add up to its age.
// Threading: plain values.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "paceline/v1/coordinator.pb.h"

namespace paceline::core {

class PhaseClock {
 public:
  PhaseClock() = default;
  PhaseClock(v1::RunPhase phase, std::int64_t since_ms, std::map<v1::RunPhase, std::int64_t> over)
      : phase_(phase), since_ms_(since_ms), over_(std::move(over)) {}

  void Enter(v1::RunPhase phase, std::int64_t at_ms);
  v1::RunPhase phase() const { return phase_; }
  std::int64_t since_ms() const { return since_ms_; }
  // Milliseconds by phase: of phases that are over, and of the one under way too.
  const std::map<v1::RunPhase, std::int64_t>& over() const { return over_; }
  std::map<v1::RunPhase, std::int64_t> Until(std::int64_t now_ms) const;

 private:
  v1::RunPhase phase_ = v1::RUN_PHASE_UNSPECIFIED;
  std::int64_t since_ms_ = 0;
  std::map<v1::RunPhase, std::int64_t> over_;
};

}  // namespace paceline::core
