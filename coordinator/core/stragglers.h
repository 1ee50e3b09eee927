// Ranks that compute for longer than their like. In every collective the others wait for them, so
// that the step's time shows that it is slow and not who: time in computation alone does.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "paceline/v1/coordinator.pb.h"

namespace paceline::core {

// From here on a rank is told as a straggler.
inline constexpr double kStragglerRatio = 1.2;

struct Straggler {
  std::int32_t rank = 0;
  // Time in computation for a token, waits left out, over the median of the ranks of its pipeline
  // stage, which do equal work; both since the generation began.
  double ratio = 0;
};

// In rank order. None while a rank of the stage has not told of a step yet.
std::vector<Straggler> StragglersOf(const v1::RunStatus& status);

}  // namespace paceline::core
