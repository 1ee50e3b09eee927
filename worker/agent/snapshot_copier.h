// Reads other nodes' snapshots into this node's folder of copies: those of the ranks that it is the
// buddy of, as they are taken, and those that its own ranks are to begin from.
// Invariant: of one rank's two files one stays whole while the other is written, and a copy counts
// only with the digest that its head tells. One task is under way at a time: the next begins when
// the one before has let go of its files.
// Threading: Copy, Fetch and Stop belong to one thread and never wait; the handlers are called on
// the copier's threads.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "worker/agent/snapshot_tasks.h"

namespace paceline {

struct SnapshotCopierOptions {
  std::string token_file;  // of the coordinator's token, read at every call
  std::string root;        // of snapshots (snapshot_folder.h)
  std::string node;
  std::function<void(SnapshotLost)> on_lost;
  std::function<void(SnapshotCopied)> on_copied;  // also of a copy that failed
  std::function<void(SnapshotFetched)> on_fetched;
};

class SnapshotCopier {
 public:
  explicit SnapshotCopier(SnapshotCopierOptions options);
  ~SnapshotCopier();  // all threads have ended

  void Copy(const CopySnapshots& task);
  void Fetch(const FetchSnapshots& task);
  // Of that generation's task, if it is the latest.
  void Stop(const v1::GenerationKey& key);

 private:
  class Batch;

  const SnapshotCopierOptions options_;
  v1::GenerationKey key_;         // of the latest task
  std::unique_ptr<Batch> batch_;  // that does it
};

}  // namespace paceline
