#include "worker/collectives/gloo/gloo_communicator.h"

#include <utility>

#include "worker/collectives/exchange_communicator.h"
#include "worker/collectives/gloo/gloo_mesh.h"

namespace paceline {

absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(
    const CommunicatorOptions& options, const ExchangeAddresses& exchange) {
  ASSIGN_OR_RETURN(std::unique_ptr<GlooMesh> mesh, GlooMesh::Connect(options, exchange));
  return MakeExchangeCommunicator(options, std::move(mesh));
}

}  // namespace paceline
