#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>
#include <vector>

#include "launch/cli/format.h"
#include "launch/cli/run_view.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

// A run that has lost nodes goes on, and says so.
std::string StateText(const RunView& view) {
  const v1::RunStatus& status = view.status;
  const bool fewer = status.state() == v1::RUN_STATE_RUNNING && status.nodes_asked() > 0 &&
                     status.nodes_size() < status.nodes_asked();
  return fewer ? view.State() + " (" + std::to_string(status.nodes_size()) + " of " +
                     std::to_string(status.nodes_asked()) + " nodes)"
               : view.State();
}

TableRow RowOf(const RunFolder& folder, const absl::StatusOr<RunView>& view) {
  if (!view.ok()) return {folder.run_id, "unreadable", "", "", "", ""};
  const v1::RunStatus& status = view->status;
  char loss[32] = "";
  if (status.has_step()) std::snprintf(loss, sizeof loss, "%.4f", status.step().loss());
  return {folder.run_id,
          StateText(*view),
          std::to_string(status.step().step()) + "/" + std::to_string(status.steps_total()),
          loss,
          FormatCount(static_cast<double>(status.tokens())),
          FormatMoney(status.cost(), status.currency())};
}

absl::StatusOr<ExitCode> RunPs(const CommonOptions& options) {
  std::error_code error;
  // Where nothing was ever run the default folder is missing, too.
  if (options.run_dir != kDefaultRunDir && !std::filesystem::is_directory(options.run_dir, error)) {
    return absl::NotFoundError("--run-dir " + options.run_dir +
                               ": there is no such folder; give the one that holds the runs' "
                               "folders");
  }
  std::vector<TableRow> rows = {{"RUN", "STATE", "STEP", "LOSS", "TOKENS", "COST"}};
  nlohmann::json runs = nlohmann::json::array();
  for (const RunFolder& folder : ListRunFolders(options.run_dir)) {
    const absl::StatusOr<RunView> view = ViewRun(folder);
    rows.push_back(RowOf(folder, view));
    runs.push_back(view.ok() ? ToJson(*view)
                             : nlohmann::json{{"run_id", folder.run_id},
                                              {"state", "unreadable"},
                                              {"reason", std::string(view.status().message())}});
  }
  if (options.json) {
    PrintJson({{"runs", std::move(runs)}});
  } else if (rows.size() == 1) {
    std::printf("no runs in %s; paceline run FILE starts one\n", options.run_dir.c_str());
  } else {
    std::fputs(FormatTable(rows).c_str(), stdout);
  }
  return ExitCode::kDone;
}

}  // namespace

void AddPsVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<CommonOptions>();
  Verb verb(app, invocation,
            {.name = "ps",
             .help = "List the runs, newest first",
             .examples = {"paceline ps", "paceline ps --run-dir build/quickstart/runs -o json"}},
            *options);
  verb.OutputForm();
  verb.Does([options] { return RunPs(*options); });
}

}  // namespace paceline::cli
