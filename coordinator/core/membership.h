// Who belongs to the cluster: leases of live nodes, and whether a registration is taken.
// Invariant: of one node name one incarnation at most holds a lease, the newest seen.
// Threading: confined to the coordinator loop; holds no lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/status.h"
#include "coordinator/core/deadlines.h"
#include "coordinator/core/state.h"

namespace paceline::core {

// A node that fails this often within the time gets no more work.
inline constexpr int kQuarantineFailures = 3;
inline constexpr std::int64_t kFailureMemoryMs = 3'600'000;

// LeaseTable decides which nodes are alive from the renewals it is told about.
// It does no I/O and reads no clock: callers pass `now`.
class LeaseTable {
 public:
  // Gives `node` a lease of `ttl` from `now` on, in place of any it had.
  void Grant(NodeId node, Incarnation incarnation, std::chrono::milliseconds ttl, SteadyTime now);

  // Extends the lease of `node` by its ttl from `now` on.
  // kFailedPrecondition: a newer incarnation is on record, so the caller was replaced and must
  // exit, not retry. kNotFound: the node holds no lease; it must register again.
  absl::Status Renew(NodeId node, Incarnation incarnation, SteadyTime now);

  void Remove(NodeId node);

  // Nodes overdue at `now`, in NodeId order: replaying a log repeats every decision.
  std::vector<NodeId> ExpiredAt(SteadyTime now) const { return deadlines_.DueAt(now); }
  // The earliest end of a lease; SteadyTime::max(): nobody holds one.
  SteadyTime Next() const { return deadlines_.Next(); }
  // Zero: the node holds no lease.
  std::chrono::milliseconds TtlOf(NodeId node) const;
  // Several nodes, and more than half of all, have not renewed for half of their lease or longer.
  bool MostAreSilent(SteadyTime now) const;

 private:
  struct Lease {
    Incarnation incarnation;
    std::chrono::milliseconds ttl;
  };
  std::map<NodeId, Lease> leases_;
  DeadlineSet<NodeId> deadlines_;
};

enum class Admission {
  kJoins,       // unknown, or known and gone
  kReconnects,  // this incarnation is a member already
  kReplaces,    // a newer incarnation of a member
};

// What a registration means. kFailedPrecondition: a newer incarnation is on record, or the
// agent speaks a newer protocol. kInvalidArgument: names the field. kResourceExhausted: full.
absl::StatusOr<Admission> Admit(const State& state, const v1::RegisterNode& node);

}  // namespace paceline::core
