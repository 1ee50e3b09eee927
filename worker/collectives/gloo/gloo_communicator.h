// The Communicator over Gloo's TCP transport: Paceline's own collectives (ExchangeCommunicator)
// on Gloo's unbound buffers (point to point).
// Invariant: after Abort every buffer operation in flight on this rank has been woken.
// Process-wide: a SIGPIPE that nobody handles is ignored from the first connection on.
// Threading: see Communicator.
#pragma once

#include <memory>

#include "common/status.h"
#include "worker/collectives/communicator.h"

namespace paceline {

// Connects the full mesh. Blocking, at most options.connect_timeout after the addresses are
// known. kUnavailable: a peer could not be reached (its rank is named).
absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(
    const CommunicatorOptions& options, const ExchangeAddresses& exchange);

}  // namespace paceline
