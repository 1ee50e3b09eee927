#include <filesystem>
#include <iostream>
#include <memory>
#include <vector>

#include "common/run_file.h"
#include "common/status.h"
#include "launch/cli/train_session.h"
#include "launch/cli/verb.h"
#include "worker/checkpoint/checkpoint.h"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string file;
  std::vector<std::string> sets;
};

// Weights to start from are read by the workers; what is wrong with them is told now.
absl::Status CheckInit(const RunFile& run_file) {
  if (run_file.checkpoint.init.empty()) return absl::OkStatus();
  const absl::Status status = CheckpointReader::Open(run_file.checkpoint.init).status();
  if (absl::IsNotFound(status)) {
    return absl::InvalidArgumentError("[checkpoint] init = \"" + run_file.checkpoint.init +
                                      "\": " + std::string(status.message()) +
                                      "; it must be the folder of a committed checkpoint");
  }
  return Annotate(status, "[checkpoint] init");
}

// A checkpoint folder outside the run's own may hold another run's checkpoints, which this run
// would take for its own.
absl::Status CheckCheckpointDir(const RunFile& run_file) {
  const std::filesystem::path dir = run_file.checkpoint.dir;
  if (dir.is_relative() || ListCheckpoints(dir.string()).empty()) return absl::OkStatus();
  return absl::InvalidArgumentError("[checkpoint] dir = \"" + dir.string() +
                                    "\" holds another run's checkpoints; give a folder of its own, "
                                    "or one relative to the run's folder");
}

absl::StatusOr<ExitCode> RunRun(const Options& options) {
  std::vector<Override> overrides;
  for (const std::string& set : options.sets) overrides.push_back({set, "."});
  ASSIGN_OR_RETURN(const RunFile run_file, LoadRunFile(options.file, overrides));
  RETURN_IF_ERROR(CheckCheckpointDir(run_file));
  RETURN_IF_ERROR(CheckInit(run_file));
  TrainRequest request{.run_dir = options.run_dir, .run_file = run_file, .json = options.json};
  ASSIGN_OR_RETURN(request.corpus, CheckData(run_file, {options.file, overrides}));
  ASSIGN_OR_RETURN(request.folder, CreateRunFolder(options.run_dir, run_file));
  if (const absl::Status claimed = ClaimCheckpointDir(request.folder, run_file); !claimed.ok()) {
    std::error_code ignored;
    std::filesystem::remove_all(request.folder.path, ignored);  // made a moment ago, for nothing
    return claimed;
  }
  (options.json ? std::cerr : std::cout)
      << "run " << request.folder.run_id << " in " << request.folder.path << std::endl;
  return Train(request);
}

}  // namespace

void AddRunVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "run",
             .help = "Train on this machine, as a run file says",
             .examples = {"paceline run launch/recipes/quickstart.toml",
                          "paceline run my.toml --set train.steps=100 --set run.name=short",
                          "paceline run my.toml -o json > summary.json"}},
            *options);
  verb.Argument("FILE", options->file, "Run file (TOML)", Verb::kRequired);
  verb.Sets(options->sets,
            "section.key=value in place of the file's; the value in TOML, a bare word is a "
            "string, relative paths resolve against the current folder. May be repeated");
  verb.OutputForm();
  verb.Does([options] { return RunRun(*options); });
}

}  // namespace paceline::cli
