// Every time-out of a run, derived from one number, [failure] budget_ms.
// Invariant: heartbeat < lease <= budget.
// Threading: plain values.
#pragma once

#include <chrono>
#include <cstdint>

namespace paceline {

struct Timeouts {
  std::chrono::milliseconds heartbeat;      // between two of an agent
  std::chrono::milliseconds lease;          // a node silent for longer is lost
  std::chrono::milliseconds collective;     // one collective operation, from entry
  std::chrono::milliseconds reconnect_max;  // longest pause between attempts
  std::chrono::milliseconds startup;        // from planning to the generation's first step
  std::chrono::milliseconds checkpoint;     // from a rank's snapshot to its durable part
  std::chrono::milliseconds shutdown;       // from EndGeneration to the workers' end
};

Timeouts TimeoutsFor(std::int64_t budget_ms);

}  // namespace paceline
