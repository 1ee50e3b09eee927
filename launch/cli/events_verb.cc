#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status.h"
#include "launch/cli/run_events.h"
#include "launch/cli/run_history.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string run;
  std::string since;
  bool all = false;
  std::int64_t last = 0;  // 0: all
};

nlohmann::json ToJson(const RunEvent& event) {
  nlohmann::json json = {{"index", event.index},
                         {"at", FormatUtcTime(event.at_ms)},
                         {"at_ms", event.at_ms},
                         {"event", event.kind},
                         {"text", event.text}};
  json.update(event.fields);
  return json;
}

absl::StatusOr<ExitCode> RunEventsVerb(const Options& options) {
  std::optional<std::int64_t> since_ms;
  if (!options.since.empty()) {
    since_ms = ParseSince(options.since, ReadClock().wall_ms);
    if (!since_ms) {
      return absl::InvalidArgumentError(
          "--since " + options.since +
          ": give 90s, 30m, 2h or 3d, or a local time as 2024-06-11 or \"2024-06-11 11:30\"");
    }
  }
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  ASSIGN_OR_RETURN(const RunHistory history, ReadRunHistory(folder));
  if (options.json) RETURN_IF_ERROR(history.damage);
  std::vector<RunEvent> events = history.events.Events();
  if (!options.all) std::erase_if(events, [](const RunEvent& event) { return event.routine; });
  const std::size_t all = events.size();
  if (since_ms) {
    std::erase_if(events, [&since_ms](const RunEvent& event) { return event.at_ms < *since_ms; });
  }
  const auto wanted = static_cast<std::size_t>(options.last);
  if (wanted > 0 && events.size() > wanted) {
    events.erase(events.begin(), events.end() - options.last);
  }
  if (options.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const RunEvent& event : events) list.push_back(ToJson(event));
    PrintJson({{"run_id", folder.run_id},
               {"history_complete", history.whole()},
               {"first_fact", history.first_fact},
               {"events", std::move(list)}});
    return ExitCode::kDone;
  }
  if (history.damage.ok() && !history.whole() && events.size() == all) {
    std::cerr << absl::StrCat("the journal begins with fact ", history.first_fact,
                              ": what happened before was removed to keep its history within its "
                              "limit\n");
  }
  for (const RunEvent& event : events) {
    std::printf("%s  %s\n", FormatLocalTime(event.at_ms).c_str(), event.text.c_str());
  }
  std::fflush(stdout);
  RETURN_IF_ERROR(history.damage);
  return ExitCode::kDone;
}

}  // namespace

void AddEventsVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(
      app, invocation,
      {.name = "events",
       .help = "Print what happened in a run, when and why: generations, failures, "
               "rollbacks, checkpoints, nodes, coordinators. Times are local",
       .examples = {"paceline events latest", "paceline events latest --since 2h",
                    "paceline events quickstart-2024 -n 20", "paceline events latest -o json"}},
      *options);
  verb.RunArgument(options->run);
  verb.Text("--since", options->since, "WHEN",
            "Events from then on: 90s, 30m, 2h or 3d ago, or a local time as \"2024-06-11 11:30\"");
  verb.Integer("-n,--last", options->last, {0, 1'000'000'000}, "N",
               "At most the last N events; 0: all");
  verb.Flag("-a,--all", options->all,
            "Also what happens all the time: windows granted, checkpoints retired by [checkpoint] "
            "keep");
  verb.OutputForm();
  verb.Does([options] { return RunEventsVerb(*options); });
}

}  // namespace paceline::cli
