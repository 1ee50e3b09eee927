#include <dlfcn.h>

#include <string>

#include "common/process.h"
#include "worker/collectives/mpi/mpi_entry.h"
#include "worker/collectives/mpi/mpi_job.h"

namespace paceline {

absl::StatusOr<std::unique_ptr<MpiJob>> LoadMpi() {
  const std::string path = ProgramFolder() + "/../lib/libpaceline_mpi.so";
  const auto missing = [&](const std::string& why) {
    return absl::NotFoundError(
        "MPI cannot be used: " + why + "; " + path +
        " needs Open MPI 4 (libmpi.so.40) on this machine, on Debian the package libopenmpi3");
  };
  // Never unloaded: MPI's own threads and handlers stay until the process ends.
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return missing(::dlerror());
  void* const entry = ::dlsym(library, kMpiEntry);
  if (entry == nullptr) return missing("it has no " + std::string(kMpiEntry));
  absl::StatusOr<std::unique_ptr<MpiJob>> job = absl::UnknownError("");
  reinterpret_cast<MpiEntry>(entry)(PACELINE_VERSION, &job);
  return job;
}

}  // namespace paceline
