#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "common/run_file.h"
#include "common/run_state.h"
#include "common/status.h"
#include "common/timeouts.h"
#include "coordinator/core/stragglers.h"
#include "launch/cli/display.h"
#include "launch/cli/format.h"
#include "launch/cli/generations.h"
#include "launch/cli/run_history.h"
#include "launch/cli/run_view.h"
#include "launch/cli/status_json.h"
#include "launch/cli/summary.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/checkpoint.h"

namespace paceline::cli {
namespace {

constexpr std::size_t kGenerationsShown = 10;

struct Options : CommonOptions {
  std::string run;
  bool timeouts = false;
};

void Print(const char* name, const std::string& value) {
  std::printf("%-12s%s\n", name, value.c_str());
}

std::string LossText(bool known, double loss) {
  if (!known) return "unknown";
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", loss);
  return text;
}

std::string LayoutText(const v1::Layout& layout) {
  return "pipeline " + std::to_string(layout.pipeline()) + " x data " +
         std::to_string(layout.data()) + ", expert " + std::to_string(layout.expert()) +
         (layout.pipeline() > 1 ? ", " + layout.schedule() : "") +
         (layout.shard_optimizer() ? ", zero 1" : "");
}

void PrintProgress(const v1::RunStatus& status) {
  Print("step",
        std::to_string(status.step().step()) + " of " + std::to_string(status.steps_total()));
  Print("loss", LossText(status.has_step(), status.step().loss()) + ", validation " +
                    LossText(status.has_eval(), status.eval().valid_loss()));
  Print("tokens", FormatCount(static_cast<double>(status.tokens())));
  const TimeShares shares = SharesOf(status);
  if (shares.step_seconds > 0) {
    Print("time in", "compute " + FormatShare(shares.compute_seconds, shares.step_seconds) +
                         ", exposed communication " +
                         FormatShare(shares.exposed_communication_seconds, shares.step_seconds) +
                         ", waiting for other stages " +
                         FormatShare(shares.pipeline_wait_seconds, shares.step_seconds) +
                         ", data wait " +
                         FormatShare(shares.data_wait_seconds, shares.step_seconds));
  }
  Print("cost", FormatMoney(status.cost(), status.currency()) + ", paid by " + status.member() +
                    " for " + status.project());
  if (status.recoveries() > 0) {
    Print("recoveries", std::to_string(status.recoveries()) + ", " +
                            FormatNumberOf(status.lost_steps(), "step") + " lost");
  }
}

void PrintNodesAndRanks(const v1::RunStatus& status) {
  for (const v1::NodeStatus& node : status.nodes()) {
    Print("node", node.name() + " on " + node.host() + ", " + FormatNumberOf(node.slots(), "slot") +
                      ", " + (node.alive() ? "alive" : "gone") +
                      (node.metrics_address().empty()
                           ? ""
                           : ", metrics http://" + node.metrics_address() + "/metrics"));
  }
  std::map<std::int32_t, std::string> slow;
  for (const core::Straggler& straggler : core::StragglersOf(status)) {
    char text[64];
    std::snprintf(text, sizeof text, ", computes %.2g x as long as its stage's median",
                  straggler.ratio);
    slow[straggler.rank] = text;
  }
  for (const v1::RankProgress& rank : status.ranks()) {
    Print("rank", std::to_string(rank.rank()) + " at step " + std::to_string(rank.step()) + ", " +
                      FormatBytes(static_cast<double>(rank.memory_bytes())) +
                      (rank.operation().empty() ? "" : ", last in " + rank.operation()) +
                      slow[rank.rank()]);
  }
}

void PrintCheckpoints(const RunFolder& folder, const v1::RunStatus& status) {
  const absl::StatusOr<RunFile> run_file = LoadRunFile(folder.RunToml(), {});
  if (!run_file.ok()) return;
  for (const std::string& checkpoint : ListCheckpoints(CheckpointDir(folder, *run_file))) {
    Print("checkpoint", checkpoint + (checkpoint == status.checkpoint() ? " (newest)" : ""));
  }
}

void PrintFailure(const v1::RunStatus& status) {
  if (!status.has_failure()) return;
  Print("failure", FailureText(status));
  if (status.failure().stderr_tail_size() == 0) return;
  std::printf("last lines of stderr of rank %d:\n", status.failure().rank());
  for (const std::string& line : status.failure().stderr_tail()) {
    std::printf("  %s\n", line.c_str());
  }
}

// What the journal in the run's folder tells of its generations. However little that is, the rest
// is shown.
struct Generations {
  nlohmann::json told = nlohmann::json::array();
  bool complete = false;
  std::string error;  // why there are no more of them; empty: all that are left were read
};

// `again`: once more, where a coordinator cut the journal meanwhile.
Generations ReadGenerations(const RunFolder& folder, const RunView& view, bool again = true) {
  if (!view.submitted) return {};  // no journal knows of it
  const absl::StatusOr<RunHistory> history = ReadRunHistory(folder);
  if (again && absl::IsAborted(history.status())) return ReadGenerations(folder, view, false);
  if (!history.ok()) return {.error = std::string(history.status().message())};
  return {.told = GenerationsOf(history->events.Events()),
          .complete = history->whole() && history->damage.ok(),
          .error = std::string(history->damage.message())};
}

void PrintGenerations(const RunFolder& folder, const RunView& view, const std::string& run_dir) {
  std::fflush(stdout);  // a long journal takes its time
  const Generations generations = ReadGenerations(folder, view);
  const nlohmann::json& told = generations.told;
  if (told.size() > kGenerationsShown) {
    std::printf("generations, the newest %zu; %zu older ones are left out, %s has all:\n",
                kGenerationsShown, told.size() - kGenerationsShown,
                VerbCommand("events", folder, run_dir).c_str());
  } else if (!told.empty()) {
    std::printf("generations:\n");
  }
  if (!told.empty()) std::fputs(GenerationTable(told, kGenerationsShown).c_str(), stdout);
  if (!generations.error.empty()) {
    std::printf("the journal tells no more of the run's generations: %s\n",
                generations.error.c_str());
  } else if (view.submitted && !generations.complete) {
    std::printf(
        "what the journal had on the beginning was removed to keep its history within its "
        "limit\n");
  }
}

std::string SecondsText(std::chrono::milliseconds limit) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", std::chrono::duration<double>(limit).count());
  return text;
}

// What bounds the run in time. The median step is not known here: it is what the coordinator sees.
absl::StatusOr<ExitCode> ShowTimeouts(const RunFolder& folder, bool as_json) {
  ASSIGN_OR_RETURN(const RunFile run_file, LoadRunFile(folder.RunToml(), {}));
  nlohmann::json json = nlohmann::json::array();
  for (const TimeoutEntry& entry : ExplainTimeouts(run_file)) {
    if (as_json) {
      json.push_back({{"name", entry.name},
                      {"limit_ms", entry.limit.count()},
                      {"median_steps", entry.median_steps},
                      {"bounds", entry.bounds},
                      {"source", entry.source}});
      continue;
    }
    const std::string steps =
        entry.median_steps == 0 ? "" : " + " + std::to_string(entry.median_steps) + " median steps";
    std::printf("%-12s%-26s%s\n%38s%s\n", entry.name.c_str(),
                (SecondsText(entry.limit) + steps).c_str(), entry.bounds.c_str(), "from ",
                entry.source.c_str());
  }
  if (as_json) PrintJson({{"run_id", folder.run_id}, {"timeouts", std::move(json)}});
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunShow(const Options& options) {
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  if (options.timeouts) return ShowTimeouts(folder, options.json);
  ASSIGN_OR_RETURN(const RunView view, ViewRun(folder));
  if (options.json) {
    Generations generations = ReadGenerations(folder, view);
    nlohmann::json json = ToJson(view);
    json["generations"] = std::move(generations.told);
    json["history_complete"] = generations.complete;
    json["history_error"] =
        generations.error.empty() ? nlohmann::json(nullptr) : nlohmann::json(generations.error);
    PrintJson(json);
    return ExitCode::kDone;
  }
  const v1::RunStatus& status = view.status;
  Print("run", folder.run_id);
  Print("folder", folder.path);
  // The line on the failure says why a run failed.
  const bool told_below = status.state() == v1::RUN_STATE_FAILED && status.has_failure();
  Print("state",
        view.State() + (status.reason().empty() || told_below ? "" : ": " + status.reason()));
  Print("generation", std::to_string(status.generation()));
  if (status.has_layout()) Print("layout", LayoutText(status.layout()));
  if (status.nodes_asked() > 0 && status.generation() > 0) {
    Print("nodes", std::to_string(status.nodes_size()) + " of " +
                       std::to_string(status.nodes_asked()) + " asked for");
  }
  PrintProgress(status);
  PrintNodesAndRanks(status);
  PrintCheckpoints(folder, status);
  PrintFailure(status);
  PrintGenerations(folder, view, options.run_dir);
  if (view.IsInterrupted() ||
      (HasEnded(status.state()) && status.state() != v1::RUN_STATE_COMPLETED &&
       (status.retryable() || status.state() == v1::RUN_STATE_STOPPED))) {
    std::printf("next: %s\n", ResumeCommand(folder, options.run_dir).c_str());
  }
  return ExitCode::kDone;
}

}  // namespace

void AddShowVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "show",
             .help = "Show a run: state, layout, nodes, ranks, progress, checkpoints, cost, what a "
                     "dead rank said last, and its generations",
             .examples = {"paceline show", "paceline show latest",
                          "paceline show quickstart-2024 -o json", "paceline show --timeouts"}},
            *options);
  verb.RunArgument(options->run);
  verb.Flag("--timeouts", options->timeouts,
            "Every time-out of the run: how long it is, what it bounds, and where it comes from");
  verb.OutputForm();
  verb.Does([options] { return RunShow(*options); });
}

}  // namespace paceline::cli
