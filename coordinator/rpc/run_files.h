// What the coordinator does to a run's folder: manifests, deleted checkpoints, summary.json, and
// coordinator.json, by which the command line finds the coordinator.
// Invariant: each file appears whole or not at all, and doing a thing twice does no harm.
// Threading: any thread; CoordinatorFiles is internally locked.
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <string>

#include "common/status.h"
#include "paceline/v1/coordinator.pb.h"

namespace paceline {

// FOLDER/manifest.json.pending, durable.
absl::Status WritePendingManifest(const std::string& folder, const std::string& json);

// Renames it to manifest.json, durably. Done already: OK.
absl::Status PublishManifest(const std::string& folder);

// Removes the checkpoint, its manifest first, so that a crash leaves no whole-looking half. Gone
// already: OK. kInvalidArgument: the folder's name is not that of a checkpoint ("step-...").
absl::Status DeleteCheckpoint(const std::string& folder);

// "waiting", "completed", ...: as summary.json and metrics name it.
std::string RunStateName(v1::RunState state);

// Content of RUN_DIR/summary.json. What a run does not have (a loss before its first step, a
// validation loss without held-out text, a cost per token before its first token) is null.
// tokens_per_second: tokens that the ranks of the last generation processed over the time the
// slowest of them spent in steps; evaluations and checkpoints beside the steps do not count.
std::string SummaryJson(const v1::RunStatus& status);

// What coordinator.json says.
struct CoordinatorInfo {
  std::string address;          // HOST:PORT of the gRPC server
  std::string metrics_address;  // HOST:PORT of /metrics
  std::uint64_t epoch = 0;
  std::int64_t pid = 0;
  std::string token_file;
  std::int64_t started_ms = 0;
};

std::string ToJson(const CoordinatorInfo& info);

// Where this coordinator's coordinator.json lies: in its state folder, and in the folder of each
// run that it serves.
class CoordinatorFiles {
 public:
  // Before WriteTo: the addresses are known only when the servers listen.
  void SetInfo(const CoordinatorInfo& info);

  absl::Status WriteTo(const std::string& folder);
  // Removes those that are still this coordinator's own.
  void RemoveAll();

 private:
  std::mutex mutex_;
  std::string json_;
  std::set<std::string> paths_;
};

}  // namespace paceline
