// Where the ranks of an MPI job are, in the run's own words: nodes and slots. A machine that holds
// more ranks than a node has slots counts as several nodes, as it does for local runs.
// Threading: pure function.
#pragma once

#include <vector>

#include "common/status.h"

namespace paceline {

struct MpiPlace {
  int node = 0;    // counts from 0 in the order of the nodes' first ranks
  int slot = 0;    // of the node
  int leader = 0;  // the node's first rank: it starts the node's agent
};

// `hosts`: of every rank the lowest rank on its machine. Machines are cut into nodes of
// `slots_per_node` ranks, in rank order; the last of a machine may have fewer.
std::vector<MpiPlace> PlacesOf(const std::vector<int>& hosts, int slots_per_node);

}  // namespace paceline
