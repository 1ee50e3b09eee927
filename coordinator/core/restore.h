// What a generation begins from: the state that is held in memory, by workers and in snapshots,
// where together they hold all of one step, or the last committed checkpoint. And which nodes keep
// copies of others' snapshots, so that a lost node takes no state along.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "coordinator/core/state.h"
#include "paceline/v1/training.pb.h"

namespace paceline::core {

// What members hold of a run's last generation.
struct Held {
  std::map<std::int32_t, std::int64_t> live;  // by rank: the step that its worker holds
  // By node, and by the rank as which they were taken: the steps of its snapshots.
  std::map<NodeId, std::map<std::int32_t, std::set<std::int64_t>>> snapshots;
};

struct RestorePoint {
  bool live = false;                         // false: the last committed checkpoint, or nothing
  std::int64_t step = 0;                     // completed in it
  std::vector<v1::StateTransfer> transfers;  // with `live`, by receiving rank
  std::vector<v1::SnapshotSource> sources;   // with `live`, likewise
  // Without it: a rank of the last generation whose state is in no memory. None: each is in some,
  // but not all of one step, or nothing of this layout.
  std::optional<std::int32_t> missing;
};

// Whether ranks of the same stage and share of the experts hold the same state in both layouts,
// however many copies there are.
bool SameState(const v1::Layout& a, const v1::Layout& b);

// Ranks of `layout` with the same answer hold the same state: those that differ in their share of
// the batch alone, but for sharded optimizers.
std::int32_t StateOf(const v1::Layout& layout, std::int32_t rank);

// The highest step whose state is covered for every rank of the plan, if it lies not before the
// last committed one. A rank takes it up, in this order, from its slot's worker, from a snapshot on
// its node, from a rank that has it, from a snapshot on a node that `serves` others.
RestorePoint RestoreFor(const Run& run, const Held& held, const v1::Layout& layout,
                        const std::vector<v1::RankPlacement>& placements,
                        const std::function<bool(NodeId)>& serves);

// Whether the workers of the run's last generation, which has ended, still cover its state with
// those on `node` and not without them. Of facts alone: of the ranks, the one that failed is taken
// to hold nothing, and the others all that they may; what snapshots hold needs no worker.
bool HoldsLastCopy(const State& state, const Run& run, NodeId node);

// A rank whose snapshots another node keeps copies of.
struct Buddy {
  std::int32_t rank = 0;
  NodeId node;   // that has the rank
  NodeId buddy;  // the next one of the generation, by id
};

// For each state that one node alone holds one rank, in rank order: then every state lies on two
// nodes. None where there is one node alone.
std::vector<Buddy> BuddiesOf(const v1::GenerationStarted& plan);

}  // namespace paceline::core
