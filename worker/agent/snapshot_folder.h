// Where a node keeps snapshots, in shared memory, for this user alone:
//
//   ROOT/RUN_ID/NODE/           those of its own ranks
//   ROOT/RUN_ID/NODE/copies/    copies of other nodes'
//   ROOT/.gone/NODE/            what nobody wants any more, while it is being removed
//
// Threading: any thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"
#include "worker/agent/snapshot_ledger.h"

namespace paceline {

// Makes `root`, or sees that it is this user's own. kPermissionDenied: it is somebody else's.
absl::Status PrepareSnapshotRoot(const std::string& root);

std::string SnapshotFolder(const std::string& root, const std::string& run_id,
                           const std::string& node);
std::string SnapshotCopiesFolder(const std::string& root, const std::string& run_id,
                                 const std::string& node);

// What `node` has of `run_id`, or, where that is empty, of any run.
std::vector<FoundSnapshot> FindSnapshots(const std::string& root, const std::string& run_id,
                                         const std::string& node);

// Removes snapshots: gigabytes of memory take their time, so they are renamed aside at once, and a
// run that comes back finds nothing of them, and freed by a thread.
class SnapshotRemoval {
 public:
  // Begins with what a former agent of the node was about to remove. `root` empty: there is
  // nothing.
  SnapshotRemoval(std::string root, std::string node);
  ~SnapshotRemoval();  // all is freed
  SnapshotRemoval(const SnapshotRemoval&) = delete;
  SnapshotRemoval& operator=(const SnapshotRemoval&) = delete;

  void Remove(const std::string& run_id);
  void Remove(const std::string& run_id, const std::vector<SnapshotFiles>& files);

 private:
  void SetAside(const std::string& path);
  void Wake();
  void Run();

  const std::string root_;
  const std::string node_;
  const std::string gone_;
  int renamed_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool due_ = true;
  bool ending_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace paceline
