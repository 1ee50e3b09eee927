#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "common/run_state.h"
#include "common/status.h"
#include "launch/cli/coordinator_client.h"
#include "launch/cli/log_follower.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

constexpr std::chrono::milliseconds kFollowInterval{200};

struct Options : CommonOptions {
  std::string run;
  bool follow = false;
  std::optional<std::int64_t> rank;
  std::int64_t lines = 0;  // of what is there already; 0: all
};

bool IsLive(const RunFolder& folder) {
  const absl::StatusOr<std::unique_ptr<CoordinatorClient>> client =
      CoordinatorClient::ForFolder(folder);
  if (!client.ok()) return false;
  const absl::StatusOr<v1::RunStatus> status = (*client)->GetRun(folder.run_id);
  return status.ok() && !HasEnded(status->state());
}

void Print(const std::vector<std::string>& lines, std::size_t first = 0) {
  for (std::size_t i = first; i < lines.size(); ++i) std::printf("%s\n", lines[i].c_str());
  std::fflush(stdout);
}

absl::Status NoLog(const Options& options, const RunFolder& folder) {
  return absl::NotFoundError("run " + folder.run_id + " has no log of rank " +
                             std::to_string(*options.rank) + " in " + folder.Logs());
}

// "rank-00000 | the line".
nlohmann::json LineJson(const std::string& line) {
  constexpr std::string_view kBetween = " | ";
  const std::size_t end = line.find(kBetween);
  return {{"source", line.substr(0, end)}, {"line", line.substr(end + kBetween.size())}};
}

absl::StatusOr<ExitCode> PrintAsJson(const Options& options, const RunFolder& folder,
                                     std::vector<std::string> lines) {
  const auto wanted = static_cast<std::size_t>(options.lines);
  if (wanted > 0 && lines.size() > wanted) lines.erase(lines.begin(), lines.end() - options.lines);
  nlohmann::json json = nlohmann::json::array();
  for (const std::string& line : lines) json.push_back(LineJson(line));
  PrintJson({{"run_id", folder.run_id}, {"lines", std::move(json)}});
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunLogs(const Options& options) {
  if (options.json && options.follow) {
    return absl::InvalidArgumentError(
        "-o json is one object, which -f would never end; give one "
        "of the two");
  }
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  LogFollower follower(folder.Logs(), options.rank);
  if (options.json) {
    std::vector<std::string> lines = follower.Finish();
    if (follower.empty() && options.rank.has_value()) return NoLog(options, folder);
    return PrintAsJson(options, folder, std::move(lines));
  }
  const std::vector<std::string> present = follower.NewLines();
  const auto wanted = static_cast<std::size_t>(options.lines);
  Print(present, wanted > 0 && present.size() > wanted ? present.size() - wanted : 0);
  // The state is asked before the lines are read, so that the last lines are not missed.
  while (options.follow && IsLive(folder)) {
    std::this_thread::sleep_for(kFollowInterval);
    Print(follower.NewLines());
  }
  Print(follower.Finish());
  if (follower.empty() && options.rank.has_value()) {
    return NoLog(options, folder);
  }
  return ExitCode::kDone;
}

}  // namespace

void AddLogsVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "logs",
             .help = "Print what coordinator, agents and ranks of a run have logged",
             .examples = {"paceline logs latest -f", "paceline logs latest --rank 1 --lines 50",
                          "paceline logs latest -o json"}},
            *options);
  verb.RunArgument(options->run);
  verb.Flag("-f,--follow", options->follow, "Go on until the run ends");
  verb.Integer("--rank", options->rank, {0, 1'000'000}, "N", "This rank's log alone");
  verb.Integer("-n,--lines", options->lines, {0, 1'000'000'000}, "N",
               "At most this many lines of what is there already; 0: all");
  verb.OutputForm();
  verb.Does([options] { return RunLogs(*options); });
}

}  // namespace paceline::cli
