// absl::Status and grpc::Status have the same codes and differ in type alone.
// Threading: pure functions.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "common/status.h"

namespace paceline {

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

}  // namespace paceline
