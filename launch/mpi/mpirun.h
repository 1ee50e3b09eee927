// The command that starts a run's ranks as an MPI job on this machine.
// Threading: any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace paceline {

struct MpirunOptions {
  std::string program_folder;  // holds paceline-worker
  std::string run_id;
  std::string coordinator_json;
  std::string token_path;
  std::string log_folder;
  std::int64_t ranks = 1;
  std::int64_t slots_per_node = 1;
};

// mpirun and its arguments, through env(1), which finds the first mpirun in PATH.
std::vector<std::string> MpirunCommand(const MpirunOptions& options);

}  // namespace paceline
