// The sum that every reduction ends in: one addend from each rank, added in rank order.
// Invariant: the result is ((a[0] + a[1]) + a[2]) + ..., element by element, whatever arrived
// first; integers wrap.
// Threading: pure function.
#pragma once

#include <cstddef>
#include <span>

#include "worker/collectives/communicator.h"

namespace paceline {

// out[i] = addends[0][i] + addends[1][i] + ... for i in [0, count). `out` may be one of the
// addends, but overlaps none of them otherwise.
void SumInRankOrder(std::span<const void* const> addends, void* out, std::size_t count,
                    DataType type);

}  // namespace paceline
