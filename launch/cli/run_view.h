// How a run stands: asked of its coordinator where one lives, else read from its folder.
// Threading: any thread; nothing is written.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "launch/cli/run_folder.h"
#include "paceline/v1/coordinator.pb.h"

namespace paceline::cli {

struct RunView {
  v1::RunStatus status;
  bool live = false;      // a coordinator answered
  bool submitted = true;  // a coordinator has journaled it

  // "running", "completed", ...; "interrupted" for a run that neither ended nor has a
  // coordinator.
  std::string State() const;
  bool IsInterrupted() const;
};

absl::StatusOr<RunView> ViewRun(const RunFolder& folder);

// From the folder alone: the journal's replay, completed by the last lines of steps.jsonl and
// evals.jsonl. kFailedPrecondition: the journal is of a newer version.
absl::StatusOr<RunView> ViewRunFolder(const RunFolder& folder);

// The last whole line of a file of lines; empty: there is none.
std::string LastLine(const std::string& path);

}  // namespace paceline::cli
