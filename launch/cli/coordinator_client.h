// Calls a run's coordinator. Every call carries the run's token and has a deadline.
// Threading: any thread.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/cli/run_folder.h"
#include "paceline/v1/coordinator.pb.h"

namespace paceline::cli {

class CoordinatorClient {
 public:
  // The coordinator at `address`; nothing is sent yet.
  CoordinatorClient(const std::string& address, std::string token);
  ~CoordinatorClient();

  // The living coordinator of `folder`. kUnavailable: there is none (no coordinator.json, or its
  // process has ended).
  static absl::StatusOr<std::unique_ptr<CoordinatorClient>> ForFolder(const RunFolder& folder);

  absl::Status SubmitRun(const v1::SubmitRunRequest& request);
  absl::Status StopRun(const v1::StopRunRequest& request);
  absl::StatusOr<v1::RunStatus> GetRun(const std::string& run_id);
  absl::StatusOr<v1::ListNodesResponse> ListNodes();
  absl::Status DrainNode(const v1::DrainNodeRequest& request);
  absl::Status UndrainNode(const v1::UndrainNodeRequest& request);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A new request id: 128 random bits in hex.
std::string MakeRequestId();

}  // namespace paceline::cli
