#include "launch/cli/run_view.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>

#include "common/clock.h"
#include "common/run_file.h"
#include "common/run_state.h"
#include "common/status.h"
#include "coordinator/core/core.h"
#include "coordinator/storage/journal.h"
#include "launch/cli/coordinator_client.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

constexpr std::int64_t kTailBytes = 1 << 16;

// What the run's coordinator has journaled; kNotFound: nothing of this run.
absl::StatusOr<v1::RunStatus> ReplayRun(const RunFolder& folder) {
  std::error_code error;
  if (!std::filesystem::exists(folder.CoordinatorState(), error)) {
    return absl::NotFoundError("run " + folder.run_id + " has no journal");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<storage::Journal> journal,
                   storage::OpenFileJournal(folder.CoordinatorState(), /*read_only=*/true));
  core::Core core{core::CoreOptions{}};
  RETURN_IF_ERROR(
      journal
          ->Read([&core](const v1::StateSnapshot& snapshot) { return core.Restore(snapshot); },
                 [&core](const v1::Fact& fact) { return core.Evolve(fact); })
          .status());
  // Nothing is charged for the time since the coordinator's last word.
  Now now = ReadClock();
  now.wall_ms = core.state().at_ms;
  return core.GetRun(folder.run_id, now);
}

// Replay knows of steps only what caused a decision; the agent wrote every one of them.
void TakeRecords(const RunFolder& folder, v1::RunStatus& status) {
  const nlohmann::json step =
      nlohmann::json::parse(LastLine(folder.Steps()), nullptr, /*allow_exceptions=*/false);
  const auto number = [](const nlohmann::json& record, const char* key) {
    const auto value = record.find(key);
    return value != record.end() && value->is_number() ? value->get<double>() : 0.0;
  };
  if (step.is_object() && number(step, "step") >= static_cast<double>(status.step().step())) {
    v1::StepRecord& record = *status.mutable_step();
    record.set_step(static_cast<std::int64_t>(number(step, "step")));
    record.set_loss(number(step, "loss"));
    record.set_grad_norm(number(step, "grad_norm"));
    record.set_learning_rate(number(step, "learning_rate"));
    record.set_step_seconds(number(step, "step_seconds"));
    status.set_tokens(static_cast<std::int64_t>(number(step, "tokens")));
  }
  const nlohmann::json eval =
      nlohmann::json::parse(LastLine(folder.Evals()), nullptr, /*allow_exceptions=*/false);
  if (eval.is_object() && number(eval, "step") >= static_cast<double>(status.eval().step())) {
    status.mutable_eval()->set_step(static_cast<std::int64_t>(number(eval, "step")));
    status.mutable_eval()->set_valid_loss(number(eval, "valid_loss"));
  }
}

}  // namespace

std::string RunView::State() const {
  return IsInterrupted() ? "interrupted" : RunStateName(status.state());
}

bool RunView::IsInterrupted() const { return !live && !HasEnded(status.state()); }

absl::StatusOr<RunView> ViewRun(const RunFolder& folder) {
  const absl::StatusOr<std::unique_ptr<CoordinatorClient>> client =
      CoordinatorClient::ForFolder(folder);
  if (client.ok()) {
    absl::StatusOr<v1::RunStatus> status = (*client)->GetRun(folder.run_id);
    if (status.ok()) return RunView{.status = *std::move(status), .live = true};
    // A coordinator that is starting, ending, or not this run's: the folder tells.
  }
  return ViewRunFolder(folder);
}

absl::StatusOr<RunView> ViewRunFolder(const RunFolder& folder) {
  RunView view;
  absl::StatusOr<v1::RunStatus> replayed = ReplayRun(folder);
  if (replayed.ok()) {
    view.status = *std::move(replayed);
  } else if (absl::IsNotFound(replayed.status())) {
    ASSIGN_OR_RETURN(const RunFile run_file, LoadRunFile(folder.RunToml(), {}));
    view.status.set_name(run_file.run.name);
    view.status.set_member(run_file.run.member);
    view.status.set_project(run_file.run.project);
    view.status.set_steps_total(run_file.train.steps);
    view.status.set_currency(run_file.rates.currency);
    view.status.set_state(v1::RUN_STATE_WAITING);
    view.status.set_reason("it was never submitted to a coordinator");
    view.submitted = false;
  } else {
    return Annotate(replayed.status(), "the journal of run " + folder.run_id);
  }
  view.status.set_run_id(folder.run_id);
  view.status.set_run_dir(folder.path);
  // Agents end with the `paceline run` that began them, whether the journal heard of it or not.
  for (v1::NodeStatus& node : *view.status.mutable_nodes()) node.set_alive(false);
  if (!HasEnded(view.status.state())) TakeRecords(folder, view.status);
  return view;
}

std::string LastLine(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return "";
  const std::int64_t size = in.tellg();
  const std::int64_t begin = std::max<std::int64_t>(0, size - kTailBytes);
  std::string tail(static_cast<std::size_t>(size - begin), '\0');
  in.seekg(begin);
  in.read(tail.data(), static_cast<std::streamsize>(tail.size()));
  tail.resize(static_cast<std::size_t>(std::max<std::streamsize>(in.gcount(), 0)));
  // A line without its newline is still being written.
  const std::size_t end = tail.rfind('\n');
  if (end == std::string::npos) return "";
  const std::size_t before = end == 0 ? std::string::npos : tail.rfind('\n', end - 1);
  return before == std::string::npos ? tail.substr(0, end)
                                     : tail.substr(before + 1, end - before - 1);
}

}  // namespace paceline::cli
