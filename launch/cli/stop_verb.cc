#include <cstdio>
#include <memory>

#include "common/status.h"
#include "launch/cli/coordinator_client.h"
#include "launch/cli/run_view.h"
#include "launch/cli/status_json.h"
#include "launch/cli/summary.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string run;
};

absl::StatusOr<ExitCode> RunStop(const Options& options) {
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  const absl::StatusOr<std::unique_ptr<CoordinatorClient>> client =
      CoordinatorClient::ForFolder(folder);
  if (absl::IsUnavailable(client.status())) {
    ASSIGN_OR_RETURN(const RunView view, ViewRunFolder(folder));
    return absl::InvalidArgumentError("run " + folder.run_id + " is not running (it is " +
                                      view.State() + "): there is nothing to stop");
  }
  RETURN_IF_ERROR(client.status());
  v1::StopRunRequest request;
  request.set_request_id(MakeRequestId());
  request.set_run_id(folder.run_id);
  request.set_reason("paceline stop");
  RETURN_IF_ERROR((*client)->StopRun(request));
  if (options.json) {
    PrintJson({{"run_id", folder.run_id}, {"state", "stopping"}});
  } else {
    std::printf("run %s is stopping: a last checkpoint, then the end\nnext: %s\n",
                folder.run_id.c_str(), VerbCommand("show", folder, options.run_dir).c_str());
  }
  return ExitCode::kDone;
}

}  // namespace

void AddStopVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "stop",
             .help = "Ask a run to write a last checkpoint and end",
             .examples = {"paceline stop latest", "paceline stop quickstart-20240611-093005-1f2e"}},
            *options);
  verb.RunArgument(options->run);
  verb.OutputForm();
  verb.Does([options] { return RunStop(*options); });
}

}  // namespace paceline::cli
