// The MPI job that this process is a rank of. The implementation lies in libpaceline_mpi.so, which
// is loaded when a worker is told that it runs under MPI: the worker itself needs no MPI library,
// and neither does the bundle.
//
//   ASSIGN_OR_RETURN(auto job, LoadMpi());
//   ... job->AllGather(...) ... job->Connect(options) ...
//   return job->Finalize();   // or job->Abort(75), which ends every rank
//
// One thread of the process makes every call of MPI (MPI_THREAD_FUNNELED). A job cannot lose a
// rank and go on: after any failure of a mesh, or an Abort of one, no mesh of this process moves
// another byte, and the process must end with Abort.
// Invariant: one job a process, for its whole life; every rank calls the collective methods in the
// same order.
// Threading: one thread; Abort from any.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/collectives/mesh.h"

namespace paceline {

class MpiJob {
 public:
  virtual ~MpiJob() = default;

  // In MPI_COMM_WORLD: where mpirun put this process. The plan may number the ranks otherwise.
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Of every rank the lowest rank on the same machine.
  virtual const std::vector<int>& hosts() const = 0;

  // What every rank said, by rank. Collective and blocking, without a limit of its own: whoever
  // started the job ends it when a rank does not come.
  virtual absl::StatusOr<std::vector<std::string>> AllGather(const std::string& own) = 0;

  // The group of all ranks of the job, numbered by options.rank. Collective.
  // kDeadlineExceeded: not all came within options.connect_timeout. kInvalidArgument: the job has
  // another size.
  virtual absl::StatusOr<std::unique_ptr<Mesh>> Connect(const CommunicatorOptions& options) = 0;

  // Leaves the job, which ends well when every rank has. Nothing may be called after it.
  virtual absl::Status Finalize() = 0;
  // Ends every rank of the job; this process with `exit_code`.
  [[noreturn]] virtual void Abort(int exit_code) = 0;
};

// Loads the library beside this program (../lib/libpaceline_mpi.so) and begins the job.
// kNotFound: the library, or the system's Open MPI that it needs, is not there.
// kFailedPrecondition: the library is of another release.
absl::StatusOr<std::unique_ptr<MpiJob>> LoadMpi();

}  // namespace paceline
