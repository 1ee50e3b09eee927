// How the ranks of a group find each other and connect, each with each.
// Invariant: a returned context has a live connection to every other rank.
// Threading: blocking; one thread.
#pragma once

#include <gloo/transport/context.h>

#include <memory>

#include "common/status.h"
#include "worker/collectives/communicator.h"

namespace paceline {

// kInvalidArgument: a bad option, named. kUnavailable: a peer (named) could not be reached
// within connect_timeout, or published what is not an address. Errors of `exchange` pass through.
absl::StatusOr<std::shared_ptr<gloo::transport::Context>> ConnectGlooMesh(
    const CommunicatorOptions& options, const ExchangeAddresses& exchange);

}  // namespace paceline
