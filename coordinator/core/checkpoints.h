// Checkpoints on their way to being committed:
//
//   parts of all ranks durable --> manifest.json.pending --> fact --> manifest.json
//
// One manifest of a run is written at a time, so that the ledger's digest in it is the one that
// the fact will commit.
// Threading: plain values and pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/manifest.h"
#include "common/status.h"
#include "coordinator/core/state.h"

namespace paceline::core {

struct CheckpointInFlight {
  v1::DataPosition position;
  std::map<std::int32_t, v1::CheckpointPart> parts;  // by rank
  std::set<std::string> files;                       // of the parts
  SteadyTime deadline;                               // for the last part
  bool writing = false;                              // its manifest
  std::string manifest_digest;
  std::string ledger_digest;
};

// By step, of one generation.
using CheckpointsInFlight = std::map<std::int64_t, CheckpointInFlight>;

// Whether `part` can belong to a checkpoint of the run's open generation. kInvalidArgument: the
// rank's position is not one of this run, or its file or slices cannot be.
absl::Status CheckPart(const Run& run, const v1::CheckpointPart& part);

// Adds a part; a repeat changes nothing. kInvalidArgument: it contradicts the parts before it.
absl::Status AddPart(const v1::CheckpointPart& part, CheckpointInFlight* checkpoint);

// The lowest rank whose part is missing; -1: none.
std::int32_t FirstMissingRank(const CheckpointInFlight& checkpoint, std::int32_t world_size);

// Ranks that should hold the same state and do not.
struct Disagreement {
  std::int32_t rank = 0;   // the first that most others differ from, or simply the first
  v1::FailureCause cause;  // CORRUPT_STATE, or without a majority REPLICAS_DIFFER
  std::string text;        // of CORRUPT_STATE as the end of a sentence about the rank
};

// Ranks with the same share of the model are compared, as far as they tell a digest. `checkpoint`
// has all its parts.
std::optional<Disagreement> FindDisagreement(const CheckpointInFlight& checkpoint,
                                             const v1::Layout& layout);

// What the folder will say of itself. `checkpoint` has all its parts.
Manifest ManifestOf(const Run& run, const CheckpointInFlight& checkpoint);

// Whether the checkpoint of `step` was committed or discarded.
bool IsSettled(const Run& run, std::int64_t step);

// Tokens of the lineage at `step`, which every completed step has grown by as many.
std::int64_t TokensAt(const Run& run, std::int64_t step);

}  // namespace paceline::core
