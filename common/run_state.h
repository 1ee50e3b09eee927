// A run's states, its phases and what ends its generations by name, as summary.json, the metrics
// and the command line write them.
// Invariant: each has one name, whoever writes it.
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

inline constexpr std::pair<v1::RunPhase, const char*> kRunPhases[] = {
    {v1::RUN_PHASE_WAITING, "waiting"},   {v1::RUN_PHASE_STARTING, "starting"},
    {v1::RUN_PHASE_TRAINING, "training"}, {v1::RUN_PHASE_RECOVERING, "recovering"},
    {v1::RUN_PHASE_RESIZING, "resizing"},
};

// "unknown": not told, or of a newer version.
inline const char* CauseName(v1::FailureCause cause) {
  switch (cause) {
    case v1::FAILURE_CAUSE_WORKER_EXIT:
      return "worker_exit";
    case v1::FAILURE_CAUSE_WORKER_ERROR:
      return "worker_error";
    case v1::FAILURE_CAUSE_PEER_LOST:
      return "peer_lost";
    case v1::FAILURE_CAUSE_STALL:
      return "stall";
    case v1::FAILURE_CAUSE_NODE_LOST:
      return "node_lost";
    case v1::FAILURE_CAUSE_CHECKPOINT:
      return "checkpoint";
    case v1::FAILURE_CAUSE_CORRUPT_STATE:
      return "corrupt_state";
    case v1::FAILURE_CAUSE_REPLICAS_DIFFER:
      return "replicas_differ";
    default:
      return "unknown";
  }
}

// What a failure of that cause befell: a rank, a node, or the run as a whole, where no rank is
// known to be the culprit. "unknown" as above.
inline const char* ScopeName(v1::FailureCause cause) {
  switch (cause) {
    case v1::FAILURE_CAUSE_WORKER_EXIT:
    case v1::FAILURE_CAUSE_WORKER_ERROR:
    case v1::FAILURE_CAUSE_STALL:
    case v1::FAILURE_CAUSE_CORRUPT_STATE:
      return "rank";
    case v1::FAILURE_CAUSE_NODE_LOST:
      return "node";
    case v1::FAILURE_CAUSE_PEER_LOST:
    case v1::FAILURE_CAUSE_CHECKPOINT:
    case v1::FAILURE_CAUSE_REPLICAS_DIFFER:
      return "run";
    default:
      return "unknown";
  }
}

inline bool HasEnded(v1::RunState state) {
  return state == v1::RUN_STATE_COMPLETED || state == v1::RUN_STATE_STOPPED ||
         state == v1::RUN_STATE_FAILED;
}

}  // namespace paceline
