// What AgentCore has its shell do about other nodes' snapshots, and what it hears of it.
// Threading: plain values.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "common/status.h"
#include "paceline/v1/coordinator.pb.h"

namespace paceline {

// --- actions ---
// Keep copies of what these ranks take, until StopCopying, in place of whatever was copied before.
struct CopySnapshots {
  v1::GenerationKey key;
  std::int64_t base_step = 0;  // at which the generation began
  std::vector<v1::SnapshotCopy> copies;
};
// Read what ranks of the generation begin from; SnapshotFetched answers each. Ends what was copied.
struct FetchSnapshots {
  v1::GenerationKey key;
  std::int64_t step = 0;
  std::vector<v1::SnapshotSource> sources;
  std::chrono::milliseconds limit{};  // for all of them
};
struct StopCopying {
  v1::GenerationKey key;
};

// --- events ---
// A copy is about to be written over.
struct SnapshotLost {
  v1::GenerationKey key;
  std::int32_t rank = 0;
  std::int64_t step = 0;
};
struct SnapshotCopied {
  v1::GenerationKey key;
  std::int32_t rank = 0;
  absl::Status status;
  std::int64_t step = 0;
  std::int64_t bytes = 0;
};
struct SnapshotFetched {
  v1::GenerationKey key;
  v1::SnapshotSource source;
  absl::Status status;
  std::int64_t bytes = 0;
};

}  // namespace paceline
