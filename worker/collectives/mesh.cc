#include "worker/collectives/mesh.h"

namespace paceline {

std::string Where(const CommunicatorOptions& options, const Mesh::Operation& operation) {
  return "rank " + options.NameOf(options.rank) + ": " + operation.kind + " \"" + operation.name +
         "\"";
}

}  // namespace paceline
