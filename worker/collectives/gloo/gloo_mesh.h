// Point-to-point exchange between the ranks of a group over Gloo's TCP transport: what the
// collectives are made of.
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
// Invariant: the first failure is final: every later exchange returns it. Once an exchange has
// returned nothing touches its segments.
// Threading: Exchange belongs to one thread at a time; Abort may come from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/clock.h"
#include "common/status.h"
#include "worker/collectives/communicator.h"

namespace paceline {

class GlooMesh {
 public:
  // What a rank sends to, or receives from, one peer.
  struct Segment {
    void* data = nullptr;
    std::size_t bytes = 0;  // 0: nothing is transferred
  };

  // Which exchange this is: equal on both ends of a transfer, or the transfer waits in vain and
  // the time-out names it.
  struct Operation {
    const char* kind = "";       // "all-reduce"; a string literal
    const char* name = "";       // the caller's
    std::uint8_t code = 0;       // tells kinds and phases apart, below 128
    std::uint32_t sequence = 0;  // counts the operations of this kind of use
    SteadyTime deadline;
    std::chrono::milliseconds timeout{0};  // how far the deadline was away at entry
  };

  // See MakeGlooCommunicator.
  static absl::StatusOr<std::unique_ptr<GlooMesh>> Connect(const CommunicatorOptions& options,
                                                           const ExchangeAddresses& exchange);
  ~GlooMesh();
  GlooMesh(const GlooMesh&) = delete;
  GlooMesh& operator=(const GlooMesh&) = delete;

  int rank() const;
  int size() const;

  // Sends sends[r] to rank r and receives recvs[r] from it, for all r but the own rank. Returns
  // when all has been received and everything sent may be written over. size() entries each.
  // kDeadlineExceeded: names the peers not heard from. kUnavailable: names the peer that is gone.
  // kAborted: Abort was called.
  absl::Status Exchange(const Operation& operation, std::span<const Segment> sends,
                        std::span<const Segment> recvs);

  // Wakes Exchange with kAborted, now and ever after. The connections are closed behind.
  void Abort(const std::string& reason);

 private:
  GlooMesh();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
