// A worker as a rank of an MPI job: it finds its node and slot among the job's ranks, starts the
// node's agent where it is the node's first rank, and then trains as every worker does.
// Invariant: the process ends well only after MPI_Finalize; any other end ends the job.
// Threading: occupies the calling thread.
#pragma once

#include "common/exit_code.h"
#include "worker/mpi/node_agent.h"

namespace paceline {

ExitCode RunMpiWorker(const NodeAgentOptions& options);

}  // namespace paceline
