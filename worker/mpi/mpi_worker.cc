#include "worker/mpi/mpi_worker.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>

#include "common/process.h"
#include "spdlog/spdlog.h"
#include "worker/collectives/mpi/mpi_job.h"
#include "worker/mpi/placement.h"
#include "worker/trainer/worker.h"

namespace paceline {
namespace {

constexpr std::chrono::seconds kAgentStart{30};

absl::Status Train(MpiJob& job, const NodeAgentOptions& options) {
  const MpiPlace place =
      PlacesOf(job.hosts(), options.slots_per_node)[static_cast<std::size_t>(job.rank())];
  std::string socket;
  if (place.leader == job.rank()) {
    ASSIGN_OR_RETURN(socket, StartNodeAgent(ProgramFolder() + "/paceline-agent", options,
                                            place.node, kAgentStart));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> sockets, job.AllGather(socket));
  return RunWorker({.agent_socket = sockets[static_cast<std::size_t>(place.leader)],
                    .seat = place.slot,
                    .mpi = &job});
}

}  // namespace

ExitCode RunMpiWorker(const NodeAgentOptions& options) {
  // Whoever started this rank is the job: a rank that outlives it would hold its node.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto job = LoadMpi();
  if (!job.ok()) {
    spdlog::error("{}", std::string(job.status().message()));
    return ExitCodeFor(job.status());
  }
  absl::Status status = Train(**job, options);
  if (status.ok()) status = (*job)->Finalize();
  if (status.ok()) return ExitCode::kDone;
  spdlog::error("this rank ends its MPI job: {}", std::string(status.message()));
  const ExitCode code = ExitCodeFor(status);
  (*job)->Abort(static_cast<int>(code));
  return code;  // never reached, but GCC 12 does not trust a virtual function's [[noreturn]]
}

}  // namespace paceline
