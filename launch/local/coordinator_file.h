// coordinator.json: where a run's coordinator answers, written by the coordinator once it does.
// Threading: any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace paceline {

struct CoordinatorFile {
  std::string address;  // HOST:PORT of its gRPC server
  std::string metrics_address;
  std::uint64_t epoch = 0;
  std::string host;  // on which `pid` runs; empty: the coordinator did not say
  std::int64_t pid = 0;
};

// kNotFound: there is no such file. kInvalidArgument: it is none of a coordinator.
absl::StatusOr<CoordinatorFile> ReadCoordinatorFile(const std::string& path);

}  // namespace paceline
