// Puts a run onto nodes: its layout, and which slot each rank takes. Pure: equal inventories
// give equal plans, and every answer carries its reason.
// Threading: pure functions.
#pragma once

#include <string>
#include <vector>

#include "common/ids.h"
#include "common/run_file.h"
#include "common/status.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::core {

// How `file` splits over its ranks. kInvalidArgument: it does not fit, and why.
absl::StatusOr<v1::Layout> LayoutFor(const RunFile& file);

// A node that could take ranks of the run now, with all its slots free.
struct FreeNode {
  NodeId id;
  int slots = 0;
};

struct Plan {
  bool fits = false;
  std::string reason;  // "4 ranks on 2 nodes", or what is missing
  v1::Layout layout;
  std::vector<v1::RankPlacement> placements;  // in rank order; empty unless it fits
};

bool SameLayout(const v1::Layout& a, const v1::Layout& b);

// Ranks are placed node by node in the order of `free` (NodeId order), contiguously, at most
// [launch] slots_per_node on one node. A node that is taken serves this run alone. Ranks of
// `former`, the run's last generation, stay where they were if their node is free and the layout is
// the same; the others then take the places that are left.
Plan PlanFor(const RunFile& file, const std::vector<FreeNode>& free,
             const v1::GenerationStarted& former = {});

}  // namespace paceline::core
