// What the coordinator does to a run's folder: manifests, deleted checkpoints, and
// coordinator.json, by which the command line finds the coordinator.
// Invariant: each file appears whole or not at all, doing a thing twice does no harm, and a
// coordinator that was replaced changes nothing (epoch_fence.h): kFailedPrecondition.
// Threading: any thread; CoordinatorFiles is internally locked.
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/manifest.h"
#include "common/status.h"
#include "coordinator/storage/epoch_fence.h"

namespace paceline {

// FOLDER/manifest.json.pending, durable. kDataLoss: a part that the manifest names is not there, or
// has another size; names the file.
absl::Status WritePendingManifest(const storage::EpochFence& fence, const std::string& folder,
                                  const Manifest& manifest);

// Renames it to manifest.json, durably. Done already: OK.
absl::Status PublishManifest(const std::string& folder);

// Removes the checkpoint, its manifest first, so that a crash leaves no whole-looking half. Gone
// already: OK. kInvalidArgument: the folder's name is not that of a checkpoint.
// kFailedPrecondition: it holds a manifest.json, which one that is not `committed` cannot.
absl::Status DeleteCheckpoint(const std::string& folder, bool committed);

// Renames the checkpoint to FOLDER.damaged, which nothing takes for a checkpoint. Gone already: OK.
// kInvalidArgument: the folder's name is not that of a checkpoint.
absl::Status SetCheckpointAside(const std::string& folder);

// Removes what former coordinators have left half written in the checkpoints of `dir`, and the
// checkpoints of generations up to `last_generation` that are not among the
// folders `known`: no generation writes them any more and nobody will commit them. One that holds a
// manifest.json is left and named in the log. No `dir`: OK. The first error, after all are tried.
absl::Status SweepCheckpoints(const storage::EpochFence& fence, const std::string& dir,
                              std::uint64_t last_generation, const std::vector<std::string>& known);

// What coordinator.json says.
struct CoordinatorInfo {
  std::string address;          // HOST:PORT of the gRPC server
  std::string metrics_address;  // HOST:PORT of /metrics
  std::uint64_t epoch = 0;
  std::string host;
  std::int64_t pid = 0;
  std::string token_file;
  std::int64_t started_ms = 0;
};

std::string ToJson(const CoordinatorInfo& info);

// Where this coordinator's coordinator.json lies: in its state folder, and in the folder of each
// run that it serves.
class CoordinatorFiles {
 public:
  explicit CoordinatorFiles(storage::EpochFence fence) : fence_(std::move(fence)) {}

  // Before WriteTo: the addresses are known only when the servers listen.
  void SetInfo(const CoordinatorInfo& info);

  absl::Status WriteTo(const std::string& folder);
  // Writes those anew that are gone or of an earlier epoch, as where a former coordinator, on its
  // way out, took this one's for its own.
  absl::Status Tend();
  // Removes those that are still this coordinator's own.
  void RemoveAll();

 private:
  const storage::EpochFence fence_;
  std::mutex mutex_;
  std::string json_;
  std::set<std::string> paths_;
};

}  // namespace paceline
