#include "launch/mpi/mpirun.h"

#include <unistd.h>

namespace paceline {

std::vector<std::string> MpirunCommand(const MpirunOptions& options) {
  // As for local runs, ranks may be more than cores, are not bound, and yield while they wait.
  std::vector<std::string> command = {"/usr/bin/env",
                                      "mpirun",
                                      "--oversubscribe",
                                      "--bind-to",
                                      "none",
                                      "--mca",
                                      "mpi_yield_when_idle",
                                      "1",
                                      "-n",
                                      std::to_string(options.ranks)};
  if (::geteuid() == 0) command.push_back("--allow-run-as-root");
  command.insert(command.end(),
                 {options.program_folder + "/paceline-worker", "--mpi", "--coordinator-file",
                  options.coordinator_json, "--token-file", options.token_path, "--run-id",
                  options.run_id, "--slots-per-node", std::to_string(options.slots_per_node),
                  "--log-folder", options.log_folder});
  return command;
}

}  // namespace paceline
