// The life of a run, and what its failures mean.
//
//   submitted -> WAITING   for nodes
//   WAITING   -> STARTING  a generation was planned
//             -> COMPLETED, STOPPED, FAILED
//   STARTING  -> (RUNNING) its first step is known; the journal does not tell the two apart
//             -> STOPPING  somebody asked for the end
//             -> WAITING   the generation ended
//   STOPPING  -> WAITING   the generation ended
//   COMPLETED, STOPPED, FAILED -> WAITING  submitted again with `resume`, which a run that is
//                        WAITING already may be, too
//
// A generation's end always leads through WAITING: what follows (another generation, or the
// run's end) is a decision of its own.
// Threading: pure functions.
#pragma once

#include <string>

#include "coordinator/core/state.h"
#include "paceline/v1/coordinator.pb.h"

namespace paceline::core {

bool MayFollow(v1::RunState from, v1::RunState to);

// Whether the same run may succeed when it is resumed: true for crashes, lost nodes and passing
// errors; false where the user or an operator must act first.
bool IsRetryable(const v1::RankFailed& failure);

// Why no other generation follows the failure of the last one; empty: one does.
std::string WhyNotAgain(const Run& run);

// Corrupt state may have been mixed into all that memory holds: no place to go on from.
bool MayBeCorrupt(const Run& run);

// A failure that only says that somebody else is gone; the cause may still be on its way.
bool IsSecondary(const v1::RankFailed& failure);

// Of what a rank or its agent said.
v1::FailureCause CauseOf(const v1::RankFailed& failure);

// "rank 3 on node-1 was ended by SIGKILL: ...".
std::string Describe(const v1::RankFailed& failure, const std::string& node_name);

// A copy with every text within its bound, and the cause found.
v1::RankFailed Bounded(const v1::RankFailed& failure);

// kInvalidArgument names the field. The request's run file, parsed.
absl::StatusOr<RunFile> CheckSubmission(const v1::SubmitRunRequest& request);

// Whether `next` may take up the lineage of `run`: what decides a sample's place in the order
// must be as it was. kInvalidArgument names the key.
absl::Status CheckTakesUp(const Run& run, const RunFile& next, const v1::SubmitRunRequest& request);

// RUN_DIR joined with [checkpoint] dir (which may be absolute).
std::string CheckpointDir(const RunFile& file, const v1::SubmitRunRequest& request);
std::string CheckpointDir(const Run& run);
// Where the latest generation puts the checkpoint of `step`.
std::string CheckpointFolder(const Run& run, std::int64_t step);

}  // namespace paceline::core
