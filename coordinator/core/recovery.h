// Times the stages of a run's way from a failure to the next first step.
// Invariant: no stage takes less than nothing, whatever ranks say.
// Threading: plain values.
#pragma once

#include <cstdint>

#include "paceline/v1/journal.pb.h"

namespace paceline::core {

// Milliseconds of the journal's clock; 0: not yet.
struct RecoveryClock {
  std::uint64_t generation = 0;  // that failed
  std::int64_t well_ms = 0;      // what failed was last known to be well
  std::int64_t ended_ms = 0;     // the generation
  std::int64_t left_ms = 0;      // the last of the workers that were to leave it
  std::int64_t ready_ms = 0;     // every rank of the next one listens

  // `load_ms`: the longest that a rank took to load its state before it listened; `begin_ms`: from
  // then to the beginning of its first step.
  v1::RecoveryTimes Times(std::int64_t load_ms, std::int64_t begin_ms, std::int64_t now_ms) const;
};

}  // namespace paceline::core
