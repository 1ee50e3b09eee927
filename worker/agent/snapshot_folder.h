// Where a node keeps snapshots: ROOT/RUN_ID/NODE, in shared memory, for this user alone.
// Threading: any thread.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "worker/agent/snapshot_ledger.h"

namespace paceline {

// Makes `root`, or sees that it is this user's own. kPermissionDenied: it is somebody else's.
absl::Status PrepareSnapshotRoot(const std::string& root);

std::string SnapshotFolder(const std::string& root, const std::string& run_id,
                           const std::string& node);

// What `node` has of `run_id`, or, where that is empty, of any run.
std::vector<FoundSnapshot> FindSnapshots(const std::string& root, const std::string& run_id,
                                         const std::string& node);

void RemoveSnapshotFolder(const std::string& root, const std::string& run_id,
                          const std::string& node);

}  // namespace paceline
