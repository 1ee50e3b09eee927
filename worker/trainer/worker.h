// The worker process: one slot of a node. Says Hello to its agent, is told a rank, trains it, and
// is told the next thing; the agent's death ends it.
//   waiting --WarmUp--> the run file and its corpora loaded, waiting
//   waiting --RankStart--> training --RankFinished--> waiting --ExitWorker--> gone
//   training --AbortGeneration--> RankLeft, waiting
//   training --a peer is gone--> RankFailed, RankLeft, waiting
//   training --another error--> RankFailed, gone
// A rank of an MPI job does not wait for another generation: after an abort it is gone.
// Invariant: at most one generation trains at a time.
// Threading: RunWorker occupies the calling thread (the step thread) and starts one for commands.
#pragma once

#include <chrono>
#include <string>

#include "common/status.h"
#include "worker/collectives/mpi/mpi_job.h"

namespace paceline {

struct WorkerOptions {
  std::string agent_socket;
  int seat = 0;                       // the agent's place for this process
  std::string address = "127.0.0.1";  // of this node: where Gloo's connections end
  std::chrono::milliseconds connect_timeout{10'000};
  MpiJob* mpi = nullptr;  // the job that this process is a rank of; null: its agent started it
};

// OK: the agent said ExitWorker. kUnavailable: the agent has gone. Else what ended the rank,
// after it was reported to the agent. kAborted: the agent ended a rank of an MPI job.
absl::Status RunWorker(const WorkerOptions& options);

}  // namespace paceline
