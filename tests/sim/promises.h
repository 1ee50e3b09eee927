// What a simulation holds the coordinator to, fact by fact and apart from the coordinator's own
// state: a second opinion. Each breach is a sentence.
// Invariant: sees every durable fact once, in order.
// Threading: one thread.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "paceline/v1/journal.pb.h"

namespace paceline::sim {

// The checkpoint parts that lie durably in each folder, by generation.
struct Disk {
  // (folder, generation) -> ranks whose part is durable.
  std::map<std::pair<std::string, std::uint64_t>, std::set<std::int32_t>> parts;
  std::set<std::string> pending;    // manifest.json.pending lies there
  std::set<std::string> published;  // manifest.json lies there
};

class Promises {
 public:
  explicit Promises(const Disk* disk) : disk_(disk) {}

  // Steps a worker has been allowed to take are told by the world.
  void OnFact(const v1::Fact& fact);
  // An accepted heartbeat of a node at `at_ms` of the journal's clock.
  void OnHeartbeat(std::uint64_t node_id, std::int64_t at_ms) { heard_ms_[node_id] = at_ms; }

  const std::vector<std::string>& breaches() const { return breaches_; }
  // Steps that the committed lineage of the run covers, from 0 on without a gap.
  std::int64_t CommittedSteps(const std::string& run_id) const;
  double ChargedTo(const std::string& run_id) const;

 private:
  struct Lineage {
    bool open = false;
    std::uint64_t generation = 0;
    std::int32_t world = 0;
    std::int64_t granted_until = 0;
    std::vector<std::int64_t> committed;  // steps of the checkpoints that stand, ascending
    double cost = 0;
  };
  struct Membership {
    bool alive = false;
    std::uint64_t incarnation = 0;
    std::int64_t charged_until_ms = 0;
  };

  void Expect(bool holds, const v1::Fact& fact, const std::string& otherwise);
  void OnCommitted(const v1::Fact& fact, const v1::CheckpointCommittedFact& commit);
  void OnDiscarded(const v1::CheckpointDiscarded& discarded);
  void OnCharge(const v1::Fact& fact, const v1::ChargePosted& charge);

  const Disk* disk_;
  std::map<std::string, Lineage> runs_;
  std::map<std::uint64_t, Membership> nodes_;
  std::map<std::uint64_t, std::int64_t> heard_ms_;
  std::int64_t last_index_ = 0;
  std::vector<std::string> breaches_;
};

}  // namespace paceline::sim
