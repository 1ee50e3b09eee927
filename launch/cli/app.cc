#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/logging.h"
#include "common/run_file_schema.h"
#include "common/status.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verbs.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

// A first word that is no verb, with the verb it may have been meant for.
std::string UnknownVerb(const CLI::App& app, int argc, const char* const* argv) {
  if (argc < 2 || argv[1][0] == '-') return "";
  std::vector<std::string> verbs;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (verb->get_name() == argv[1]) return "";
    verbs.push_back(verb->get_name());
  }
  const std::string nearest = run_file::Nearest(argv[1], verbs);
  std::string text = "paceline " + std::string(argv[1]) + ": there is no such verb; ";
  if (!nearest.empty()) return text + "did you mean paceline " + nearest + "?";
  text += "there are";
  for (const std::string& verb : verbs) text += " " + verb;
  return text;
}

// The verb (of the last level) that the first words name.
const CLI::App& VerbNamed(const CLI::App& app, int argc, const char* const* argv) {
  const CLI::App* verb = &app;
  for (int i = 1; i < argc; ++i) {
    const std::vector<const CLI::App*> named = verb->get_subcommands(
        [word = argv[i]](const CLI::App* below) { return below->get_name() == word; });
    if (named.empty()) break;
    verb = named.front();
  }
  return *verb;
}

// The first flag that the verb does not have, with the one it may have been meant for.
std::string UnknownFlag(const CLI::App& app, int argc, const char* const* argv) {
  const CLI::App& verb = VerbNamed(app, argc, argv);
  std::vector<std::string> flags;
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--") break;
    const std::string flag = word.substr(0, word.find('='));
    if (!flag.starts_with("--") || std::find(flags.begin(), flags.end(), flag) != flags.end()) {
      continue;
    }
    const std::string nearest = run_file::Nearest(flag, flags);
    return flag + ": there is no such flag" +
           (nearest.empty() ? "" : "; did you mean " + nearest + "?");
  }
  return "";
}

int PrintParseError(const CLI::App& app, const CLI::ParseError& error, int argc,
                    const char* const* argv) {
  if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
  std::string unknown = UnknownVerb(app, argc, argv);
  if (unknown.empty() && dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    unknown = UnknownFlag(app, argc, argv);
  }
  std::cerr << (unknown.empty() ? std::string(error.what()) : unknown)
            << "\nsee paceline --help, or paceline VERB --help" << std::endl;
  return static_cast<int>(ExitCode::kBadInput);
}

int PrintStatus(const Invocation& invocation, const absl::Status& status) {
  const ExitCode code = ExitCodeFor(status);
  std::cerr << status.message() << std::endl;
  if (invocation.json) {
    PrintJson({{"error", std::string(status.message())}, {"exit_code", static_cast<int>(code)}});
  }
  return static_cast<int>(code);
}

}  // namespace

void AddVerbs(CLI::App& app, Invocation& invocation) {
  AddDataVerbs(app, invocation);
  AddRunVerb(app, invocation);
  AddPsVerb(app, invocation);
  AddShowVerb(app, invocation);
  AddLogsVerb(app, invocation);
  AddEventsVerb(app, invocation);
  AddAuditVerb(app, invocation);
  AddNodeVerbs(app, invocation);
  AddStopVerb(app, invocation);
  AddResumeVerb(app, invocation);
  AddGenerateVerb(app, invocation);
  AddCheckpointVerbs(app, invocation);
  AddPlanVerb(app, invocation);
  AddVersionVerb(app, invocation);
  AddCompletionVerb(app, invocation);
}

int Main(int argc, const char* const* argv) {
  CLI::App app("Trains sparse mixture-of-experts language models, and sees what they cost.",
               "paceline");
  app.set_version_flag("--version", std::string("paceline ") + PACELINE_VERSION);
  app.require_subcommand(1);
  app.footer(
      "exit codes: 0 done, 2 bad input, 70 broken, 75 worth a retry, 130 interrupted with a "
      "checkpoint\n"
      "examples:\n  paceline run launch/recipes/quickstart.toml\n  paceline show latest\n"
      "  paceline VERB --help");
  Invocation invocation;
  AddVerbs(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return PrintParseError(app, error, argc, argv);
  }
  // Libraries log; what a verb has to say it says itself.
  if (const absl::Status status = SetUpLogging({.program = "paceline", .level = "warning"});
      !status.ok()) {
    return PrintStatus(invocation, status);
  }
  const absl::StatusOr<ExitCode> code = invocation.action();
  return code.ok() ? static_cast<int>(*code) : PrintStatus(invocation, code.status());
}

}  // namespace paceline::cli
