// The verbs of `paceline`: each file adds one to the command line.
// Invariant: every verb takes --run-dir; those that answer with facts take -o json too.
// Threading: the main thread.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "common/exit_code.h"

namespace CLI {
class App;
}  // namespace CLI

namespace paceline::cli {

// What the command line turned out to ask for.
struct Invocation {
  bool json = false;
  // Errors are printed by main, and their code chooses the exit code.
  std::function<absl::StatusOr<ExitCode>()> action;
};

void AddDataVerbs(CLI::App& app, Invocation& invocation);
void AddRunVerb(CLI::App& app, Invocation& invocation);
void AddResumeVerb(CLI::App& app, Invocation& invocation);
void AddPsVerb(CLI::App& app, Invocation& invocation);
void AddShowVerb(CLI::App& app, Invocation& invocation);
void AddLogsVerb(CLI::App& app, Invocation& invocation);
void AddEventsVerb(CLI::App& app, Invocation& invocation);
void AddAuditVerb(CLI::App& app, Invocation& invocation);
void AddNodeVerbs(CLI::App& app, Invocation& invocation);
void AddStopVerb(CLI::App& app, Invocation& invocation);
void AddGenerateVerb(CLI::App& app, Invocation& invocation);
void AddCheckpointVerbs(CLI::App& app, Invocation& invocation);
void AddPlanVerb(CLI::App& app, Invocation& invocation);
void AddVersionVerb(CLI::App& app, Invocation& invocation);
void AddCompletionVerb(CLI::App& app, Invocation& invocation);

// All of them.
void AddVerbs(CLI::App& app, Invocation& invocation);

// Parses the command line and does what it asks. What main returns.
int Main(int argc, const char* const* argv);

}  // namespace paceline::cli
