#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <system_error>
#include <vector>

#include "common/files.h"
#include "common/run_file.h"
#include "common/status.h"
#include "launch/cli/coordinator_client.h"
#include "launch/cli/run_view.h"
#include "launch/cli/train_session.h"
#include "launch/cli/verb.h"
#include "worker/checkpoint/checkpoint.h"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string run;
  std::vector<std::string> sets;
};

// What may change between two stretches of one run without changing what it trains, or on which
// samples.
constexpr const char* kChangeable[] = {"layout.",        "launch.",     "failure.",
                                       "rates.",         "train.steps", "checkpoint.interval_steps",
                                       "checkpoint.keep"};

absl::Status CheckChangeable(const std::string& set) {
  const std::string key = set.substr(0, set.find('='));
  const bool changeable =
      std::any_of(std::begin(kChangeable), std::end(kChangeable), [&](const std::string& allowed) {
        return allowed.back() == '.' ? key.starts_with(allowed) : key == allowed;
      });
  if (changeable) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "--set " + set + ": a run that goes on keeps its " + key +
      "; only [layout], [launch], [failure], [rates], train.steps, checkpoint.interval_steps "
      "and checkpoint.keep may change. Start another run for the rest");
}

absl::Status CheckNotRunning(const RunFolder& folder) {
  const absl::StatusOr<std::unique_ptr<CoordinatorClient>> client =
      CoordinatorClient::ForFolder(folder);
  if (!client.ok() || !(*client)->GetRun(folder.run_id).ok()) return absl::OkStatus();
  return absl::InvalidArgumentError("run " + folder.run_id +
                                    " has a living coordinator; stop it first: paceline stop " +
                                    folder.run_id);
}

// A committed checkpoint whose manifest was still to be renamed is the coordinator's to complete.
bool HasManifest(const std::string& folder) {
  std::error_code error;
  return std::filesystem::exists(folder + "/manifest.json", error) ||
         std::filesystem::exists(folder + "/manifest.json.pending", error);
}

// The run's checkpoints from the newest on, until one that is whole. Those before it in the
// list are damaged, each with what is wrong. `newest` is the newest that was journaled.
absl::StatusOr<std::vector<v1::DamagedCheckpoint>> FindDamaged(const std::string& dir,
                                                               const std::string& newest) {
  std::vector<v1::DamagedCheckpoint> damaged;
  std::vector<std::string> checkpoints = ListCheckpoints(dir);
  if (!newest.empty() && !HasManifest(newest)) checkpoints.insert(checkpoints.begin(), newest);
  for (const std::string& folder : checkpoints) {
    const absl::StatusOr<std::unique_ptr<CheckpointReader>> reader = CheckpointReader::Open(folder);
    const absl::Status status = reader.ok() ? (*reader)->Verify() : reader.status();
    if (status.ok()) return damaged;
    if (absl::IsFailedPrecondition(status)) return status;  // of a newer version
    std::cerr << "checkpoint " << folder << " is damaged: " << status.message() << std::endl;
    v1::DamagedCheckpoint& entry = damaged.emplace_back();
    entry.set_folder(folder);
    entry.set_reason(std::string(status.message()));
  }
  if (damaged.empty()) return damaged;
  return absl::DataLossError("all " + std::to_string(damaged.size()) + " checkpoints in " + dir +
                             " are damaged; restore one from a backup, or start the run anew "
                             "with paceline run");
}

absl::StatusOr<ExitCode> RunResume(const Options& options) {
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  std::vector<Override> overrides;
  for (const std::string& set : options.sets) {
    RETURN_IF_ERROR(CheckChangeable(set));
    overrides.push_back({set, "."});
  }
  ASSIGN_OR_RETURN(const RunFile run_file, LoadRunFile(folder.RunToml(), overrides));
  RETURN_IF_ERROR(CheckNotRunning(folder));
  ASSIGN_OR_RETURN(const RunView before, ViewRunFolder(folder));
  const std::string checkpoints = CheckpointDir(folder, run_file);
  if (!before.submitted && !ListCheckpoints(checkpoints).empty()) {
    return absl::DataLossError(
        "the run's journal (" + folder.CoordinatorState() + ") is gone, but " + checkpoints +
        " holds its checkpoints; start a new run with --set checkpoint.init=" +
        ListCheckpoints(checkpoints).front());
  }
  TrainRequest request{.folder = folder,
                       .run_dir = options.run_dir,
                       .run_file = run_file,
                       // A run that never reached a coordinator begins.
                       .resume = before.submitted,
                       .json = options.json};
  ASSIGN_OR_RETURN(request.corpus, CheckData(run_file, {folder.RunToml(), overrides}));
  ASSIGN_OR_RETURN(request.damaged_checkpoints,
                   FindDamaged(checkpoints, before.status.checkpoint()));
  RETURN_IF_ERROR(ClaimCheckpointDir(folder, run_file));
  // What was changed stays changed: the folder's run file says what the run is.
  if (!overrides.empty()) {
    RETURN_IF_ERROR(WriteFileAtomically(folder.RunToml(), ToToml(run_file), 0644));
  }
  std::error_code error;
  std::filesystem::remove(folder.Summary(), error);  // it tells of the stretch before
  (options.json ? std::cerr : std::cout)
      << "run " << folder.run_id << " goes on in " << folder.path
      << (before.status.checkpoint().empty() ? "; it has no checkpoint, so from its beginning" : "")
      << std::endl;
  return Train(request);
}

}  // namespace

void AddResumeVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "resume",
             .help = "Go on with a run from its last committed checkpoint",
             .examples = {"paceline resume latest",
                          "paceline resume quickstart-2024 --set train.steps=600",
                          "paceline resume latest --set launch.nodes=1",
                          "paceline resume latest --set layout.pipeline=2"}},
            *options);
  verb.RunArgument(options->run);
  verb.Sets(
      options->sets,
      "section.key=value in place of the run's; [layout], [launch], [failure], [rates], "
      "train.steps, checkpoint.interval_steps and checkpoint.keep may change. May be repeated");
  verb.OutputForm();
  verb.Does([options] { return RunResume(*options); });
}

}  // namespace paceline::cli
