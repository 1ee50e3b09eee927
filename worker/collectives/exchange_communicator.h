// The Communicator over any Mesh: the collectives are Paceline's own, so that they are the same
// operations with the same bits over every transport that moves bytes. Reductions exchange shards
// all to all and sum in rank order.
// Invariant: an operation allocates nothing once its staging memory has grown to its size.
// Threading: see Communicator.
#pragma once

#include <memory>

#include "worker/collectives/communicator.h"
#include "worker/collectives/mesh.h"

namespace paceline {

std::unique_ptr<Communicator> MakeExchangeCommunicator(const CommunicatorOptions& options,
                                                       std::unique_ptr<Mesh> mesh);

}  // namespace paceline
