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

inline constexpr double kSlotHour = 2.0;  // of every simulated run

// The checkpoint parts that lie durably in each folder, by generation.
struct Disk {
  // (folder, generation) -> ranks whose part is durable.
  std::map<std::pair<std::string, std::uint64_t>, std::set<std::int32_t>> parts;
  std::set<std::string> pending;    // manifest.json.pending lies there
  std::set<std::string> published;  // manifest.json lies there
};

class Promises {
 public:
  Promises(const Disk* disk, int nodes_max, std::int64_t micro_batches)
      : disk_(disk), nodes_max_(nodes_max), micro_batches_(micro_batches) {}

  // Steps a worker has been allowed to take are told by the world.
  void OnFact(const v1::Fact& fact);
  // A sign of life of a node's incarnation reached the coordinator at `at_ms` of the journal's
  // clock.
  void OnHeartbeat(std::uint64_t node_id, std::uint64_t incarnation, std::int64_t at_ms);
  // And the coordinator has outlived what it decided on it.
  void OnHeartbeatTaken(std::uint64_t node_id, std::uint64_t incarnation) {
    taken_[{node_id, incarnation}] = heard_[{node_id, incarnation}];
  }

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
    bool active = false;  // submitted, and not ended
  };
  // The last sign of life, and the coordinator that took it.
  struct Heard {
    std::int64_t at_ms = 0;
    std::uint64_t epoch = 0;
    bool paid = false;  // the run that the node serves alone was active
  };
  struct Membership {
    bool alive = false;
    std::uint64_t incarnation = 0;
    std::int64_t charged_until_ms = 0;
    std::string run_id;  // that it serves alone
    int slots = 0;
    bool drained = false;
  };

  void Expect(bool holds, const v1::Fact& fact, const std::string& otherwise);
  void OnJoined(const v1::Fact& fact, const v1::NodeJoined& joined);
  void OnStarted(const v1::Fact& fact, const v1::GenerationStarted& started);
  // Every rank has a slot of its own on a node that may get work, no more nodes than were asked
  // for take part, and the ranks' micro-batches are the global batch's, each once.
  void ExpectPlacement(const v1::Fact& fact, const v1::GenerationStarted& started);
  void OnCommitted(const v1::Fact& fact, const v1::CheckpointCommittedFact& commit);
  void OnDiscarded(const v1::CheckpointDiscarded& discarded);
  // The node's time is not charged on from here: what it was heard of must have been.
  void ExpectCharged(const v1::Fact& fact, std::uint64_t node_id, const Membership& node);
  void OnCharge(const v1::Fact& fact, const v1::ChargePosted& charge);

  const Disk* disk_;
  const int nodes_max_;
  const std::int64_t micro_batches_;  // of a step
  std::map<std::string, Lineage> runs_;
  std::map<std::uint64_t, Membership> nodes_;
  // By node and incarnation.
  std::map<std::pair<std::uint64_t, std::uint64_t>, Heard> heard_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, Heard> taken_;
  std::uint64_t epoch_ = 0;
  std::int64_t last_index_ = 0;
  std::vector<std::string> breaches_;
};

}  // namespace paceline::sim
