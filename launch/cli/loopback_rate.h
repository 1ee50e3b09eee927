// How fast two processes of this machine exchange messages: TCP over loopback, which is what the
// CPU transport uses.
// Threading: blocks; a helper thread answers.
#pragma once

#include "absl/status/statusor.h"
#include "common/planning/machine.h"

namespace paceline::cli {

// kUnavailable: a socket call failed or did not end within seconds.
absl::StatusOr<planning::LinkRate> MeasureLoopback();

}  // namespace paceline::cli
