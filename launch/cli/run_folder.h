// Run folders: DIR/RUN_ID/, one a run, and how a user names one.
// Invariant: a folder is a run's when it holds run.toml, which is written once, whole.
// Threading: any thread; creating and reading rely on the file system alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/run_file.h"

namespace paceline::cli {

inline constexpr char kDefaultRunDir[] = "runs";
inline constexpr char kCheckpointOwner[] = "OWNER";

struct RunFolder {
  std::string run_id;
  std::string path;  // absolute

  std::string RunToml() const { return path + "/run.toml"; }
  std::string Token() const { return path + "/token"; }
  std::string CoordinatorState() const { return path + "/coordinator"; }
  std::string CoordinatorJson() const { return path + "/coordinator.json"; }
  std::string Logs() const { return path + "/logs"; }
  std::string Steps() const { return path + "/steps.jsonl"; }
  std::string Evals() const { return path + "/evals.jsonl"; }
  std::string Summary() const { return path + "/summary.json"; }
};

// NAME-YYYYMMDD-HHMMSS-xxxx, in UTC; xxxx are the low 16 bits of `random` in hex.
std::string MakeRunId(const std::string& name, std::int64_t wall_ms, std::uint64_t random);

// Makes `run_dir` where it is missing, and in it the folder of a new run (mode 0700) with its
// logs folder and run.toml. kInvalidArgument: `run_dir` is itself a run's folder, or no folder.
absl::StatusOr<RunFolder> CreateRunFolder(const std::string& run_dir, const RunFile& run_file);

// The runs of `run_dir`, newest first (by the time their run.toml was written). A missing
// `run_dir` has none.
std::vector<RunFolder> ListRunFolders(const std::string& run_dir);

// The run a user means: a run id, a prefix that fits one run alone, "latest", a path to a run's
// folder, or nothing at all where `run_dir` has one run alone. kNotFound and kInvalidArgument
// list the runs there are.
absl::StatusOr<RunFolder> FindRunFolder(const std::string& run_dir, const std::string& name);

// Folder of the run's checkpoints, absolute.
std::string CheckpointDir(const RunFolder& folder, const RunFile& run_file);

// Makes the run's checkpoint folder its own: a file in it, OWNER, names the run. Again: OK.
// kInvalidArgument: it is another run's; names both.
absl::Status ClaimCheckpointDir(const RunFolder& folder, const RunFile& run_file);

// Every path of the run file absolute: what the coordinator and the workers get.
RunFile WithAbsolutePaths(const RunFolder& folder, RunFile run_file);

}  // namespace paceline::cli
