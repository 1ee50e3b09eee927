// Where agents keep snapshots of their ranks' state unless told otherwise: shared memory, a folder
// for each user.
// Threading: any thread.
#pragma once

#include <unistd.h>

#include <string>

namespace paceline {

inline std::string DefaultSnapshotRoot() {
  return "/dev/shm/paceline-" + std::to_string(::geteuid());
}

}  // namespace paceline
