// Serves a node's snapshots to the agents of other nodes, which keep copies of them or take up the
// state (proto/paceline/v1/snapshots.proto).
// Invariant: what it sends as whole was whole when the last byte had been read; whoever receives it
// checks the digest. It writes nothing, and serves at most `readers_max` calls at once.
// Threading: internally locked; calls are served on gRPC's threads.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "common/status.h"

namespace paceline {

struct SnapshotServerOptions {
  std::string ip;          // to listen at, at any port
  std::string token_file;  // of the coordinator's token, read at every call
  std::string root;        // of snapshots (snapshot_folder.h)
  std::string node;
  int readers_max = 64;
};

class SnapshotServer {
 public:
  // kUnavailable: it cannot listen there.
  static absl::StatusOr<std::unique_ptr<SnapshotServer>> Start(SnapshotServerOptions options);
  ~SnapshotServer();

  const std::string& address() const;  // HOST:PORT
  // A snapshot has become whole: who waits for one looks again.
  void OnTaken();

 private:
  struct Impl;
  explicit SnapshotServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
