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

// How `file` splits over at most `slots` ranks, its global batch and micro-batch as they are:
//  - as it asks, where the slots suffice;
//  - else with the same stages and expert groups, in as many copies as fit;
//  - where not even one fits, what needs the least memory on its fullest rank, since nobody knows
//    how much more than before there is; of several the one with most ranks, then fewest stages.
// kInvalidArgument: no layout fits.
absl::StatusOr<v1::Layout> LayoutOn(const RunFile& file, std::int64_t slots);

// A node that could take ranks of the run now, with all its slots free.
struct FreeNode {
  NodeId id;
  int slots = 0;
  bool stays = true;  // its workers of the run's last generation may live on
  int failures = 0;   // in the last hour
};

struct Plan {
  bool fits = false;
  bool whole = false;   // the layout is what the run file asks for
  std::string reason;   // "4 ranks on 2 nodes", or what is missing
  std::string missing;  // for the whole layout; empty: nothing
  v1::Layout layout;
  std::vector<v1::RankPlacement> placements;  // in rank order; empty unless it fits
};

bool SameLayout(const v1::Layout& a, const v1::Layout& b);

// Ranks are placed node by node, contiguously, at most [launch] slots_per_node on one node: first
// on nodes that were in `former`, the run's last generation, then on those that failed least, in
// NodeId order. A node that is taken serves this run alone. Ranks that find their state where they
// were (SameState) stay there, with another number if need be; the others take the places that are
// left. With fewer than [launch] min_nodes nodes that do not hold the whole layout nothing fits.
Plan PlanFor(const RunFile& file, const std::vector<FreeNode>& free,
             const v1::GenerationStarted& former = {});

}  // namespace paceline::core
