// What a generation begins from: the state that surviving ranks hold in memory, where together they
// hold all of one step, or the last committed checkpoint.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "coordinator/core/state.h"
#include "paceline/v1/training.pb.h"

namespace paceline::core {

// The step of the state that each rank of a run's last generation holds.
using HeldSteps = std::map<std::int32_t, std::int64_t>;

struct RestorePoint {
  bool live = false;                         // false: the last committed checkpoint, or nothing
  std::int64_t step = 0;                     // completed in it
  std::vector<v1::StateTransfer> transfers;  // with `live`, by receiving rank
};

// Whether ranks of the same stage and share of the experts hold the same state in both layouts,
// however many copies there are.
bool SameState(const v1::Layout& a, const v1::Layout& b);

// Ranks of `layout` with the same answer hold the same state: those that differ in their share of
// the batch alone, but for sharded optimizers.
std::int32_t StateOf(const v1::Layout& layout, std::int32_t rank);

// What is held where a rank of `layout` now stands: by ranks of the run's last generation that keep
// process and slot, and whose state is that of the new rank.
HeldSteps HeldInPlace(const Run& run, const HeldSteps& held, const v1::Layout& layout,
                      const std::vector<v1::RankPlacement>& placements);

// `held`: by ranks of `layout`. The highest step that is covered, if it lies not before the last
// committed one.
RestorePoint RestoreFor(const Run& run, const v1::Layout& layout, const HeldSteps& held);

}  // namespace paceline::core
