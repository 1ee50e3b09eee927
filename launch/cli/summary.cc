#include "launch/cli/summary.h"

#include <cstdio>

#include "absl/status/status.h"
#include "common/run_state.h"
#include "launch/cli/display.h"
#include "launch/cli/format.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

double NumberIn(const nlohmann::json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_number() ? value->get<double>() : 0.0;
}

std::string TextIn(const nlohmann::json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : "";
}

std::string LossIn(const nlohmann::json& object, const char* key) {
  const auto value = object.find(key);
  if (value == object.end() || !value->is_number()) return "none";
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", value->get<double>());
  return text;
}

std::vector<std::string> ResultLines(const RunFolder& folder, const v1::RunStatus& status,
                                     const nlohmann::json& summary) {
  const std::string currency = TextIn(summary, "currency");
  std::vector<std::string> lines;
  lines.push_back("run         " + folder.run_id + " " + RunStateName(status.state()) +
                  " at step " + std::to_string(static_cast<long long>(NumberIn(summary, "steps"))) +
                  " of " + std::to_string(status.steps_total()));
  lines.push_back("loss        " + LossIn(summary, "loss") + " (validation " +
                  LossIn(summary, "valid_loss") + ")");
  lines.push_back("tokens      " + FormatCount(NumberIn(summary, "tokens")) + " at " +
                  FormatCount(NumberIn(summary, "tokens_per_second")) + " tokens/s");
  if (NumberIn(summary, "recoveries") > 0 || NumberIn(summary, "lost_steps") > 0) {
    lines.push_back("recoveries  " + FormatCount(NumberIn(summary, "recoveries")) + ", " +
                    FormatCount(NumberIn(summary, "lost_steps")) + " steps and " +
                    FormatCount(NumberIn(summary, "lost_tokens")) + " tokens lost");
  }
  const double per_million = NumberIn(summary, "cost_per_million_tokens");
  lines.push_back(
      "cost        " + FormatMoney(NumberIn(summary, "cost"), currency) +
      (per_million > 0 ? ", " + FormatMoney(per_million, currency) + " a million tokens" : ""));
  const std::string checkpoint = TextIn(summary, "checkpoint");
  lines.push_back("checkpoint  " + (checkpoint.empty() ? "none" : checkpoint));
  return lines;
}

ExitCode FailedExitCode(const v1::RunStatus& status) {
  if (status.retryable()) return ExitCode::kRetry;
  const absl::Status cause(static_cast<absl::StatusCode>(status.failure().status_code()), "");
  return ExitCodeFor(cause) == ExitCode::kBadInput ? ExitCode::kBadInput : ExitCode::kBroken;
}

}  // namespace

std::string VerbCommand(const std::string& verb, const RunFolder& folder,
                        const std::string& run_dir) {
  return "paceline " + verb + " " + folder.run_id +
         (run_dir == kDefaultRunDir ? "" : " --run-dir " + run_dir);
}

std::string ResumeCommand(const RunFolder& folder, const std::string& run_dir) {
  return VerbCommand("resume", folder, run_dir);
}

std::string FailureText(const v1::RunStatus& status) {
  if (!status.has_failure()) return "";
  const v1::RankFailed& failure = status.failure();
  std::string text = "rank " + std::to_string(failure.rank());
  // What the coordinator found out by itself names the rank already.
  if (failure.error().starts_with(text + " on ")) return failure.error();
  // The coordinator's reason names the node; its host is in the list of nodes.
  for (const v1::NodeStatus& node : status.nodes()) {
    if (status.reason().find(node.name()) != std::string::npos) {
      text += " on host " + node.host() + " (" + node.name() + ")";
      break;
    }
  }
  if (failure.signal() != 0) text += ", ended by signal " + std::to_string(failure.signal());
  if (failure.exit_code() > 0) text += ", exit code " + std::to_string(failure.exit_code());
  return text + (failure.error().empty() ? "" : ": " + failure.error());
}

Conclusion ConclusionOf(const RunFolder& folder, const std::string& run_dir,
                        const v1::RunStatus& status, const nlohmann::json& summary) {
  Conclusion conclusion{.lines = ResultLines(folder, status, summary)};
  std::vector<std::string>& lines = conclusion.lines;
  const std::string checkpoint = TextIn(summary, "checkpoint");
  switch (status.state()) {
    case v1::RUN_STATE_COMPLETED:
      conclusion.exit_code = ExitCode::kDone;
      lines.push_back("next: paceline generate --checkpoint " + checkpoint + " --prompt \"...\"");
      break;
    case v1::RUN_STATE_STOPPED:
      conclusion.exit_code = ExitCode::kInterrupted;
      lines.push_back("next: " + ResumeCommand(folder, run_dir));
      break;
    default: {
      conclusion.exit_code = FailedExitCode(status);
      const std::string failure = FailureText(status);
      lines.push_back("failed      " + (failure.empty() ? status.reason() : failure));
      if (status.retryable() && !failure.empty()) {
        lines.push_back("gave up     " + status.reason());
      }
      if (status.failure().stderr_tail_size() > 0) {
        lines.push_back("its last lines of stderr: " + VerbCommand("show", folder, run_dir));
      }
      if (status.retryable()) {
        lines.push_back("next: " + ResumeCommand(folder, run_dir));
      } else if (conclusion.exit_code == ExitCode::kBadInput) {
        lines.push_back(
            "next: mend what is named above, then start the run anew with paceline "
            "run");
      } else {
        lines.push_back("next: read the line above and " + folder.Logs() + "; then " +
                        ResumeCommand(folder, run_dir));
      }
    }
  }
  return conclusion;
}

}  // namespace paceline::cli
