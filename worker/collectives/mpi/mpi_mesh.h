// The Mesh over MPI: an exchange is a set of MPI_Irecv and MPI_Isend on a communicator of the
// group's own.
// Invariant: see Mesh. Not abortable: a failure or an abort of one mesh ends those of the whole
// process, because only then does MPI leave the memory of their transfers alone.
// Communicators are never freed (MPI_Comm_free is collective, and a group may be gone): a process
// has as many as its layout has groups.
// Threading: see Mesh; MPI itself is called by the MpiThread alone.
#pragma once

#include <memory>

#include "common/status.h"
#include "worker/collectives/mesh.h"
#include "worker/collectives/mpi/mpi_thread.h"

namespace paceline {

// The mesh of those who call it with the same `colour`, numbered by options.rank; null for a group
// of one. Collective over `parent`.
// kDeadlineExceeded: not all came within options.connect_timeout.
absl::StatusOr<std::unique_ptr<Mesh>> SplitMpiMesh(MpiThread& thread, MPI_Comm parent, int colour,
                                                   const CommunicatorOptions& options);

}  // namespace paceline
