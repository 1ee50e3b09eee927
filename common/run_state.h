// A run's states by name, as summary.json, the metrics and the command line write them.
// Invariant: each state has one name, whoever writes it.
// Threading: pure functions.
#pragma once

#include <string>
#include <utility>

#include "paceline/v1/coordinator.pb.h"

namespace paceline {

inline constexpr std::pair<v1::RunState, const char*> kRunStates[] = {
    {v1::RUN_STATE_WAITING, "waiting"},     {v1::RUN_STATE_STARTING, "starting"},
    {v1::RUN_STATE_RUNNING, "running"},     {v1::RUN_STATE_STOPPING, "stopping"},
    {v1::RUN_STATE_COMPLETED, "completed"}, {v1::RUN_STATE_STOPPED, "stopped"},
    {v1::RUN_STATE_FAILED, "failed"},
};

// "unknown": of a newer version.
inline std::string RunStateName(v1::RunState state) {
  for (const auto& [known, name] : kRunStates) {
    if (known == state) return name;
  }
  return "unknown";
}

inline bool HasEnded(v1::RunState state) {
  return state == v1::RUN_STATE_COMPLETED || state == v1::RUN_STATE_STOPPED ||
         state == v1::RUN_STATE_FAILED;
}

}  // namespace paceline
