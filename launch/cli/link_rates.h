// Measures what the transport between two ranks of this machine gives.
// Threading: two threads of its own compute and wait, as ranks do, for at most seconds.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "common/planning/machine.h"

namespace paceline::cli {

struct LinkRates {
  planning::LinkRate message;    // from one rank to the other
  planning::LinkRate reduction;  // gradients summed in float64 and gathered in float32
  planning::LinkRate exchange;   // an all-to-all in float32
};

// on_rank(0) and on_rank(1), unless it is null, are called on the threads first, to bind them to
// cores.
// kUnavailable, kDeadlineExceeded: they cannot connect or talk.
absl::StatusOr<LinkRates> MeasureLinks(const std::function<void(int rank)>& on_rank);

}  // namespace paceline::cli
