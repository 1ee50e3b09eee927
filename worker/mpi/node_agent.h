// Starts a node's agent from a rank of an MPI job, outside of the job: in a session of its own,
// without the job's environment and descriptors, so that mpirun neither waits for it nor ends it.
// The agent ends by itself when the job has (--adopt-from).
// Threading: blocking; safe in a process of several threads.
#pragma once

#include <chrono>
#include <string>

#include "common/status.h"

namespace paceline {

struct NodeAgentOptions {
  std::string coordinator_file;
  std::string token_file;
  std::string run_id;
  std::string log_folder;  // node-N.log
  int slots_per_node = 1;
};

// The path of the socket at which the agent of node `node` awaits its workers. `program`: of the
// agent. kUnavailable: it ended at its start, or was not ready within `timeout`; names its log.
absl::StatusOr<std::string> StartNodeAgent(const std::string& program,
                                           const NodeAgentOptions& options, int node,
                                           std::chrono::milliseconds timeout);

// Whether an environment's entry, "NAME=value", is about the MPI job that a process is in.
bool IsOfMpiJob(const std::string& entry);

}  // namespace paceline
