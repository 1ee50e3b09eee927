// The lease: how a coordinator shows those who would take its place that it lives.
//
//   STATE/epoch-00000007.lease   made by the coordinator of epoch 7; says who it is, and for how
//   long
//                                its silence is to be borne. A renewal sets the file's times anew
//
// A watcher compares no clocks of two machines: it sees that the file is another than before, and
// times the silence by its own steady clock. A renewal takes no block of the disk, so that a full
// one costs nobody the lease.
// Invariant: a lease that is renewed within its limit is never found free while its process lives.
// What is found free may still have a coordinator, stopped or cut off: epochs fence it
// (epoch_fence.h), and the lease alone decides nothing.
// Threading: free functions any thread; a LeaseWatch has one owner.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "common/clock.h"
#include "common/ids.h"
#include "common/status.h"

namespace paceline::storage {

struct Lease {
  Epoch epoch{0};
  std::string host;
  pid_t pid = 0;
  std::uint64_t process_start = 0;  // clock ticks from the machine's boot, by which a pid is unique
  std::string pid_space;  // the machine's boot and the namespace of `pid`; empty: not known
  std::chrono::milliseconds limit{0};  // of silence
  bool released = false;               // its coordinator has ended in order
};

// This process's, of `epoch`.
Lease LeaseHere(Epoch epoch, std::chrono::milliseconds limit);

// Makes or replaces the file of the lease's epoch, and removes those of earlier ones.
absl::Status WriteLease(const std::string& folder, const Lease& lease);
// kNotFound: there is none.
absl::Status RenewLease(const std::string& folder, Epoch epoch);

// Looks at who leads, again and again.
class LeaseWatch {
 public:
  // `limit`: of silence, where an epoch has no lease (its coordinator died before it made one).
  LeaseWatch(std::string folder, std::chrono::milliseconds limit)
      : folder_(std::move(folder)), limit_(limit) {}

  struct View {
    bool free = false;     // nobody leads: released, silent for its limit, or its process is gone
    bool renewed = false;  // something has changed since the look before: somebody lives
    Epoch epoch{0};        // the newest; 0: nobody has led
    std::string text;      // who leads, or why nobody does
  };
  absl::StatusOr<View> Look(SteadyTime now);

 private:
  const std::string folder_;
  const std::chrono::milliseconds limit_;
  std::optional<std::string> seen_;  // what changes with every renewal
  SteadyTime since_;
};

}  // namespace paceline::storage
