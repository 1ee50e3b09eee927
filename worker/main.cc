// paceline-worker: trains as one rank. Started by its agent, never by hand.
#include <csignal>
#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "common/exit_code.h"
#include "common/logging.h"
#include "spdlog/spdlog.h"
#include "worker/trainer/worker.h"

int main(int argc, char** argv) {
  paceline::WorkerOptions options;
  paceline::LogOptions logging{.program = "paceline-worker"};
  CLI::App app{"Trains as one rank of a run. Its agent starts it; see 'paceline run --help'."};
  app.set_version_flag("--version", PACELINE_VERSION);
  app.add_option("--agent-socket", options.agent_socket, "Unix socket of the agent")->required();
  app.add_option("--slot", options.slot, "Slot of the node that this worker fills")->required();
  app.add_option("--log-level", logging.level, "trace, debug, info, warning, error");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(paceline::ExitCode::kBadInput);
  }
  if (const absl::Status status = paceline::SetUpLogging(logging); !status.ok()) {
    std::fprintf(stderr, "paceline-worker: %s\n", status.ToString().c_str());
    return static_cast<int>(paceline::ExitCodeFor(status));
  }
  // A peer or the agent that goes away is an error code, not a signal; and a full disk or a file
  // size limit is an errno.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  return static_cast<int>(paceline::ExitCodeFor(paceline::RunWorker(options)));
}
