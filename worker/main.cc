// paceline-worker: trains as one rank. Started by its agent, or by mpirun (--mpi).
#include <csignal>
#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "common/exit_code.h"
#include "common/logging.h"
#include "spdlog/spdlog.h"
#include "worker/mpi/mpi_worker.h"
#include "worker/trainer/worker.h"

int main(int argc, char** argv) {
  paceline::WorkerOptions options;
  paceline::NodeAgentOptions node;
  bool mpi = false;
  paceline::LogOptions logging{.program = "paceline-worker"};
  CLI::App app{
      "Trains as one rank of a run. Its agent starts it, or mpirun does; see 'paceline run "
      "--help'."};
  app.set_version_flag("--version", PACELINE_VERSION);
  CLI::Option* const socket =
      app.add_option("--agent-socket", options.agent_socket, "Unix socket of the agent");
  CLI::Option* const seat =
      app.add_option("--seat", options.seat, "The agent's place for this process");
  socket->needs(seat);
  app.add_option("--address", options.address, "This node's IP address, for ranks of other nodes")
      ->capture_default_str();
  CLI::Option* const as_rank = app.add_flag(
      "--mpi", mpi, "Run as a rank of an MPI job; a node's first rank starts its agent");
  as_rank->excludes(socket);
  const auto for_mpi = [&](const char* name, auto& value, const char* help) {
    as_rank->needs(app.add_option(name, value, help)->needs(as_rank));
  };
  for_mpi("--coordinator-file", node.coordinator_file, "The run's coordinator.json");
  for_mpi("--token-file", node.token_file, "The file that holds the coordinator's token");
  for_mpi("--run-id", node.run_id, "The run");
  for_mpi("--slots-per-node", node.slots_per_node, "Ranks that one agent serves");
  app.get_option("--slots-per-node")->check(CLI::Range(1, 256));
  for_mpi("--log-folder", node.log_folder, "Where the agents log");
  app.add_option("--log-level", logging.level, "trace, debug, info, warning, error");
  try {
    app.parse(argc, argv);
    if (!mpi && !*socket) throw CLI::RequiredError("--agent-socket or --mpi");
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
  return static_cast<int>(mpi ? paceline::RunMpiWorker(node)
                              : paceline::ExitCodeFor(paceline::RunWorker(options)));
}
