// Versions of what Paceline's programs say to each other.
// Threading: constants.
#pragma once

namespace paceline {

inline constexpr int kNodeProtocolVersion = 1;    // agent and coordinator
inline constexpr int kWorkerProtocolVersion = 2;  // worker and agent

}  // namespace paceline
