// What a generation begins from: the state that is held in memory, by workers and in snapshots,
// where together they hold all of one step, or the last committed checkpoint.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "coordinator/core/state.h"
#include "paceline/v1/training.pb.h"

namespace paceline::core {

// The steps whose state is held for each rank of a run's last generation: by its worker, or in
// snapshots on its node.
using HeldSteps = std::map<std::int32_t, std::set<std::int64_t>>;

struct RestorePoint {
  bool live = false;                         // false: the last committed checkpoint, or nothing
  std::int64_t step = 0;                     // completed in it
  std::vector<v1::StateTransfer> transfers;  // with `live`, by receiving rank
};

// `held`: of ranks that keep their slot and their place in the run's layout. Ranks that differ
// in their share of the batch alone hold the same state, but for sharded optimizers. The highest
// step that is covered, if it lies not before the last committed one.
RestorePoint RestoreFor(const Run& run, const HeldSteps& held);

}  // namespace paceline::core
