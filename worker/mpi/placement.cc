#include "worker/mpi/placement.h"

#include <map>

namespace paceline {

std::vector<MpiPlace> PlacesOf(const std::vector<int>& hosts, int slots_per_node) {
  struct Filling {
    int node = 0;
    int taken = 0;
    int leader = 0;
  };
  std::map<int, Filling> by_host;
  int nodes = 0;
  std::vector<MpiPlace> places;
  for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank) {
    Filling& filling = by_host[hosts[static_cast<std::size_t>(rank)]];
    if (filling.taken % slots_per_node == 0) {
      filling = {.node = nodes++, .taken = 0, .leader = rank};
    }
    places.push_back({.node = filling.node, .slot = filling.taken++, .leader = filling.leader});
  }
  return places;
}

}  // namespace paceline
