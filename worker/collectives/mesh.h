// Point-to-point exchange between the ranks of a group: what a transport provides, and all that
// the collectives (exchange_communicator.h) are made of.
// Invariant: the first failure is final: every later exchange returns it. Once an exchange has
// returned nothing touches its segments.
// Threading: Exchange and Split belong to one thread at a time; Abort may come from any thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/status.h"
#include "worker/collectives/communicator.h"

namespace paceline {

class Mesh {
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
    std::uint8_t code = 0;       // tells kinds and phases apart, below kCodes
    std::uint32_t sequence = 0;  // counts the operations of this kind of use
    SteadyTime deadline;
    std::chrono::milliseconds timeout{0};  // how far the deadline was away at entry
  };
  static constexpr std::uint8_t kCodes = 16;

  virtual ~Mesh() = default;

  // Whether a group that was aborted can be connected anew in this process.
  virtual bool abortable() const = 0;

  // Sends sends[r] to rank r and receives recvs[r] from it, for all r but the own rank. Returns
  // when all has been received and everything sent may be written over. An entry for each rank.
  // kDeadlineExceeded: names the peers not heard from. kUnavailable: names the peer that is gone.
  // kAborted: Abort was called.
  virtual absl::Status Exchange(const Operation& operation, std::span<const Segment> sends,
                                std::span<const Segment> recvs) = 0;

  // The mesh of `ranks` of this one, as which `options` describes it; null for a group of one.
  // Collective, as Communicator::Split; `exchange` tells the group's addresses, and every rank
  // calls it or none does.
  virtual absl::StatusOr<std::unique_ptr<Mesh>> Split(const std::vector<int>& ranks,
                                                      const CommunicatorOptions& options,
                                                      const ExchangeAddresses& exchange) = 0;

  // Wakes Exchange with kAborted, now and ever after.
  virtual void Abort(const std::string& reason) = 0;
};

// "rank 3: all-reduce "gradients"": how error texts begin.
std::string Where(const CommunicatorOptions& options, const Mesh::Operation& operation);

}  // namespace paceline
