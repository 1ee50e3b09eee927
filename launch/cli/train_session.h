// A run on this machine, from its coordinator's start to its summary: what `run` and `resume`
// share.
// Threading: one thread, the main one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/exit_code.h"
#include "common/run_file.h"
#include "launch/cli/run_folder.h"
#include "paceline/v1/coordinator.pb.h"

namespace paceline::cli {

// What the training data was found to be.
struct CorpusFacts {
  std::string digest;
  std::int64_t samples = 0;  // of one epoch
  std::int64_t tokens = 0;
  std::int64_t valid_tokens = 0;
};

// Where a run file's values came from, for messages.
struct RunFileSource {
  std::string path;
  std::vector<Override> overrides;
};

// Opens and checks every corpus that the run file names. The error names the line of the run file
// (or the --set), the corpus's file and what is wrong with it.
absl::StatusOr<CorpusFacts> CheckData(const RunFile& run_file, const RunFileSource& source);

struct TrainRequest {
  RunFolder folder;
  std::string run_dir;  // as the user gave it: for the commands that are proposed
  RunFile run_file;
  CorpusFacts corpus;
  bool resume = false;
  std::vector<v1::DamagedCheckpoint> damaged_checkpoints;
  bool json = false;
};

// Trains until the run ends, is stopped (Ctrl-C), or fails; shows its progress and prints the
// summary. Errors are those that keep a run from beginning; a run that began ends with a code.
absl::StatusOr<ExitCode> Train(const TrainRequest& request);

}  // namespace paceline::cli
