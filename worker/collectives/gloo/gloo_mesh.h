// The Mesh over Gloo's TCP transport, and between ranks of one machine through shared memory
// (shared_ring.h): there the connections only tell who is gone.
//
// What Gloo leaves open, and this class closes:
//   - A rank that waits for one peer does not notice that another died. A watcher thread keeps
//     a receive posted on every connection for this alone, and wakes whoever waits.
//   - A transfer that had begun when its peer died is never woken by Gloo. The watcher does.
//   - After an abort or a time-out Gloo may still write into a caller's memory. An exchange that
//     fails first invalidates its buffers, then returns.
// Known limit: an unexpected write error (not a reset or a closed connection) is thrown by Gloo
// on its own thread and ends the process.
//
// Invariant: see Mesh.
// Threading: see Mesh.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/collectives/mesh.h"

namespace paceline {

class GlooMesh final : public Mesh {
 public:
  // See MakeGlooCommunicator.
  static absl::StatusOr<std::unique_ptr<GlooMesh>> Connect(const CommunicatorOptions& options,
                                                           const ExchangeAddresses& exchange);
  ~GlooMesh() override;
  GlooMesh(const GlooMesh&) = delete;
  GlooMesh& operator=(const GlooMesh&) = delete;

  bool abortable() const override { return true; }
  absl::Status Exchange(const Operation& operation, std::span<const Segment> sends,
                        std::span<const Segment> recvs) override;
  absl::StatusOr<std::unique_ptr<Mesh>> Split(const std::vector<int>& ranks,
                                              const CommunicatorOptions& options,
                                              const ExchangeAddresses& exchange) override;
  // The connections are closed behind.
  void Abort(const std::string& reason) override;

 private:
  GlooMesh();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
