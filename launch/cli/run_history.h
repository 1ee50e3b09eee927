// What happened in a run, read from the journal's files in its folder alone: no coordinator is
// asked, so that a run that trains, one that has ended, and one whose coordinator is gone or silent
// are told alike.
// Threading: any thread; nothing is written.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "launch/cli/run_events.h"
#include "launch/cli/run_folder.h"

namespace paceline::cli {

struct RunHistory {
  RunEvents events;
  std::uint64_t first_fact = 1;  // that the journal still has
  absl::Status damage;           // kDataLoss: the events are those before it

  // Whether what happened is told from the run's first submission on.
  bool whole() const { return first_fact == 1 || events.whole(); }
};

// kNotFound: there is no journal, or it says nothing of the run. kFailedPrecondition: it is of a
// newer version. kAborted: its files went while they were read; read again.
absl::StatusOr<RunHistory> ReadRunHistory(const RunFolder& folder);

}  // namespace paceline::cli
