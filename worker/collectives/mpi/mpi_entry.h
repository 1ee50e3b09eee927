// The one symbol of libpaceline_mpi.so.
// Threading: called once.
#pragma once

#include <memory>

#include "common/status.h"
#include "worker/collectives/mpi/mpi_job.h"

namespace paceline {

// Begins the job. `version`: of the release that calls; library and worker share C++ types, so
// another one is refused.
using MpiEntry = void (*)(const char* version, absl::StatusOr<std::unique_ptr<MpiJob>>* job);
inline constexpr const char* kMpiEntry = "PacelineMpiBegin";

}  // namespace paceline
