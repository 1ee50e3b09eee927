// The coordinator's durable state: what replaying the journal's facts gives.
// Invariant: a function of the facts alone, applied in the order of their index; equal facts
// give equal snapshots, byte for byte. Windows of a run are contiguous: they begin where its
// last committed checkpoint ends and overlap nowhere.
// Threading: confined to the coordinator loop; holds no lock.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/run_file.h"
#include "common/status.h"
#include "coordinator/core/phases.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::core {

struct Node {
  NodeId id;
  v1::RegisterNode info;
  bool alive = false;
  std::int64_t charged_until_ms = 0;  // the next charge begins here
  std::string payer;                  // the run that pays for the node now; empty: idle
  std::uint64_t joined_index = 0;     // of the fact
  bool drained = false;               // it gets no new work
  bool quarantined = false;           // since the coordinator found so
  std::string drain_reason;
  std::vector<std::int64_t> failures_ms;  // the latest since it was undrained, oldest first
  std::vector<std::string> request_ids;   // of drains, the latest, oldest first

  bool HasRequest(const std::string& request_id) const;
  // Since `since_ms`.
  int FailuresSince(std::int64_t since_ms) const;
  Incarnation incarnation() const { return Incarnation{info.incarnation()}; }
};

// A committed checkpoint.
struct Checkpoint {
  v1::DataPosition position;
  std::string folder;
  std::string manifest_digest;
  std::string ledger_digest;
  Generation generation;
  std::int64_t tokens = 0;  // of the lineage
};

struct Run {
  v1::SubmitRunRequest request;  // the latest, with the run's effective TOML
  RunFile file;                  // parsed from it
  v1::RunState state = v1::RUN_STATE_WAITING;
  std::string reason;              // why it stopped or failed, or the last generation ended
  Generation generation;           // the latest; 0: none yet
  Generation first_generation{1};  // that the latest submission began or will begin
  bool generation_open = false;
  v1::GenerationStarted plan;       // of the latest generation
  std::uint64_t plan_index = 0;     // of the fact
  std::string move_reason;          // the latest generation is to end for another; empty: it is not
  bool move_at_checkpoint = false;  // at one that is due anyway
  std::vector<v1::Window> windows;  // granted, not yet committed
  std::vector<Checkpoint> checkpoints;             // committed and kept, oldest first
  std::vector<v1::CheckpointDiscarded> discarded;  // the latest: their folders may still lie there
  double cost = 0;                                 // posted charges
  std::int64_t last_step = 0;  // the highest that the last generation is known to have completed
  v1::StepRecord step;         // the latest known at its end
  v1::EvalRecord eval;
  std::int64_t tokens = 0;  // of the lineage, committed (while it trains) or final
  std::int64_t lost_steps = 0;
  std::int64_t lost_tokens = 0;
  std::int64_t recoveries = 0;    // generations that began without anybody's asking
  std::int64_t restarts = 0;      // generations that a rank's failure ended, since it was submitted
  std::int64_t in_vain = 0;       // the latest of these, which all began at the same step
  std::int64_t highest_step = 0;  // that any generation is known to have completed
  v1::RankFailed failure;         // that ended the last generation, if one did
  bool retryable = false;
  std::string stop_reason;               // empty: nobody asked it to stop
  std::vector<std::string> request_ids;  // the latest, oldest first
  std::string ledger_digest;             // over the committed windows
  Epoch ended_epoch;
  PhaseClock phases;
  std::set<NodeId> nodes;  // those it pays for

  const std::string& id() const { return request.run_id(); }
  bool ended() const;
  bool HasRequest(const std::string& request_id) const;
  // The latest generation's checkpoint of `step` was discarded.
  bool WasDiscarded(std::int64_t step) const;
  // A committed and kept checkpoint lies in `folder`.
  bool HasCommitted(const std::string& folder) const;
  v1::GenerationKey key() const;  // of the latest generation
  // Steps that the last committed checkpoint has completed; 0: none.
  std::int64_t CommittedStep() const;
  std::int64_t CommittedTokens() const;
  // Granted up to (not including) this step.
  std::int64_t GrantedUntil() const;
  std::int64_t TokensPerStep() const;
};

struct State {
  std::uint64_t index = 0;  // of the last fact
  std::int64_t at_ms = 0;   // its time: the journal's clock never goes back
  Epoch epoch;
  std::uint64_t next_node_id = 1;
  std::map<NodeId, Node> nodes;
  std::map<std::string, NodeId> node_by_name;
  std::map<std::string, Run> runs;

  // The state after `fact`. kDataLoss: it does not follow; the state is unchanged.
  absl::Status Evolve(const v1::Fact& fact);
  v1::StateSnapshot ToSnapshot() const;
  static absl::StatusOr<State> FromSnapshot(const v1::StateSnapshot& snapshot);

  const Run* FindRun(const std::string& run_id) const;
  const Node* FindNode(NodeId id) const;
  // The run that pays for the node while no generation holds it: the one it serves alone.
  std::string PayerAtRest(const Node& node) const;
  // Part of Evolve: who pays for the node from now on.
  void SetPayer(Node& node, const std::string& run_id);
};

// Dead nodes beyond this are forgotten, the lowest id first; so are ended runs, oldest first.
inline constexpr std::size_t kMaxNodes = 100'000;
inline constexpr std::size_t kMaxRuns = 10'000;
inline constexpr std::size_t kMaxRequestIds = 64;  // remembered of a run
inline constexpr std::size_t kMaxDiscarded = 16;   // remembered of a run
inline constexpr std::size_t kMaxFailures = 8;     // remembered of a node
inline constexpr std::size_t kMaxNodeRequestIds = 8;

}  // namespace paceline::core
