// Time as the programs see it. Liveness uses the steady clock; records carry the wall clock.
// Threading: RealClock is safe from any thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace paceline {

using SteadyTime = std::chrono::steady_clock::time_point;

// The two clocks, read together.
struct Now {
  SteadyTime steady;
  std::int64_t wall_ms = 0;  // since the Unix epoch
};

inline Now ReadClock() {
  return {std::chrono::steady_clock::now(), std::chrono::duration_cast<std::chrono::milliseconds>(
                                                std::chrono::system_clock::now().time_since_epoch())
                                                .count()};
}

inline std::int64_t MillisecondsBetween(SteadyTime from, SteadyTime to) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(to - from).count();
}

inline double SecondsBetween(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace paceline
