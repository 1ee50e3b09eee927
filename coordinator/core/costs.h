// What node-time costs. A charge covers [where the last one ended, the node's last accepted
// heartbeat): so each node-second is charged once, and none after a node's last sign of life.
// Threading: pure functions.
#pragma once

#include <cstdint>

#include "coordinator/core/state.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::core {

// slots * seconds / 3600 * slot_hour.
double AmountOf(int slots, std::int64_t milliseconds, double slot_hour);

// The charge of `node` up to `heartbeat_ms`, to the run that pays for it now. False: there is
// nothing to charge.
bool ChargeUpTo(const State& state, const Node& node, std::int64_t heartbeat_ms,
                v1::ChargePosted* out);

}  // namespace paceline::core
