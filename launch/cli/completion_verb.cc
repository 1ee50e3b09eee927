#include <cstdio>
#include <memory>
#include <string>

#include "common/status.h"
#include "launch/cli/completion.h"
#include "launch/cli/verb.h"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string shell;
};

}  // namespace

void AddCompletionVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "completion",
             .help = "Print a completion script for a shell",
             .examples = {"source <(paceline completion bash)",
                          "paceline completion zsh > ~/.zfunc/_paceline",
                          "paceline completion fish | source"}},
            *options);
  verb.Argument("SHELL", options->shell, "bash, zsh or fish", Verb::kRequired,
                {"bash", "zsh", "fish"});
  verb.Does([options, &app]() -> absl::StatusOr<ExitCode> {
    ASSIGN_OR_RETURN(const std::string script, CompletionScript(app, options->shell));
    std::fputs(script.c_str(), stdout);
    return ExitCode::kDone;
  });
}

}  // namespace paceline::cli
