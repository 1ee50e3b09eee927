// The coordinator's decisions, pure: Decide takes one event and the time, and answers with
// facts (to be journaled durably first) and effects (to be carried out after). It reads no
// clock, no socket, no file and no random device, and iterates in a fixed order: equal events
// give equal decisions.
//
//   event --Decide--> facts --(journal, fsync)--> effects
//                       \--Evolve--> State (durable: replay gives it back)
//
// Decide already evolves the state by its own facts; Evolve alone rebuilds it on replay. What
// need not survive a crash (leases, sessions, progress, rendezvous addresses, parts of a
// checkpoint in flight) lives beside the state and is rebuilt from what agents send again.
//
// Lost words: an agent that registers again says again what was not acknowledged (RankReady,
// CheckpointPart until CheckpointCommitted, CheckpointFailed, WindowRequest, RankFinished,
// RankFailed, GenerationGone) and then a heartbeat; the core tells it again where it stands
// (StartGeneration, Peers, StopGeneration, EndGeneration, ReleaseNode). Either side takes
// repeats. A message of a generation that is not open is answered by EndGeneration.
// Invariant: an effect never leaves before the facts of its decision are durable (the shell's
// duty), and everything that names an old generation, incarnation or session changes nothing.
// Threading: confined to the coordinator loop; holds no lock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/manifest.h"
#include "common/status.h"
#include "coordinator/core/state.h"
#include "paceline/v1/coordinator.pb.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::core {

// One connection of one agent; unique in the life of a coordinator process.
using SessionId = Id<struct SessionIdTag, std::uint64_t>;
// One call of a client that waits for an answer.
using CallId = Id<struct CallIdTag, std::uint64_t>;

// --- events ---
struct AgentSaid {
  SessionId session;
  v1::AgentMessage message;
};
struct SessionClosed {
  SessionId session;
};
struct SubmitRunCalled {
  CallId call;
  v1::SubmitRunRequest request;
};
struct StopRunCalled {
  CallId call;
  v1::StopRunRequest request;
};
struct DrainNodeCalled {
  CallId call;
  v1::DrainNodeRequest request;
};
struct UndrainNodeCalled {
  CallId call;
  v1::UndrainNodeRequest request;
};
// The shell has found the parts and written the pending manifest (or could not).
struct ManifestWritten {
  v1::GenerationKey key;
  std::int64_t step = 0;
  absl::Status status;
};
// The shell could not publish a manifest that is there; it may work later.
struct PublishFailed {
  std::string folder;
};
struct Tick {};
using Event =
    std::variant<AgentSaid, SessionClosed, SubmitRunCalled, StopRunCalled, DrainNodeCalled,
                 UndrainNodeCalled, ManifestWritten, PublishFailed, Tick>;

// --- effects ---
struct SendToAgent {
  SessionId session;
  v1::CoordinatorMessage message;
};
// The session is refused or replaced: tell why, and close it.
struct CloseSession {
  SessionId session;
  absl::Status reason;
};
struct AnswerCall {
  CallId call;
  absl::Status status;
  std::string run_id;  // of SubmitRun
};
// Where every part lies in FOLDER with the size that its rank reported, write
// FOLDER/manifest.json.pending and fsync it; then ManifestWritten.
struct WritePendingManifest {
  v1::GenerationKey key;
  std::int64_t step = 0;
  std::string folder;
  Manifest manifest;
};
// Rename manifest.json.pending to manifest.json and fsync the folder; where that fails,
// PublishFailed. Done already: fine.
struct PublishManifest {
  std::string folder;
};
// Remove a checkpoint's folder, its manifest first. One that never was committed is left alone
// where it holds a manifest.json.
struct DeleteCheckpoint {
  std::string folder;
  bool committed = false;
};
// Rename a committed checkpoint's folder so that nobody takes it for one. Gone: fine.
struct SetCheckpointAside {
  std::string folder;
};
// Remove what dead ranks and crashes left in `dir`, a run's checkpoint folder: checkpoints of
// generations up to `last_generation` that are neither in `known` nor hold a manifest.json.
struct SweepCheckpoints {
  std::string dir;
  std::uint64_t last_generation = 0;
  std::vector<std::string> known;  // folders
};
// The run has ended (or was taken up): write RUN_DIR/summary.json from its status.
struct WriteSummary {
  std::string run_id;
};
using Effect =
    std::variant<SendToAgent, CloseSession, AnswerCall, WritePendingManifest, PublishManifest,
                 DeleteCheckpoint, SetCheckpointAside, SweepCheckpoints, WriteSummary>;

struct Decision {
  std::vector<v1::Fact> facts;
  std::vector<Effect> effects;
};

struct CoreOptions {
  Epoch epoch{1};
  std::chrono::milliseconds charge_interval{10'000};
};

class Core {
 public:
  explicit Core(CoreOptions options);
  ~Core();

  // Replay: the state after `fact`. kDataLoss: the fact does not follow from the state (its
  // index, or what it names).
  absl::Status Evolve(const v1::Fact& fact);
  // Replay begins from a snapshot instead of nothing.
  absl::Status Restore(const v1::StateSnapshot& snapshot);
  v1::StateSnapshot Snapshot() const;

  // After replay, before the first Decide: opens the epoch, and asks again for what a crash may
  // have cut off (manifests to publish, summaries to write, charges to close).
  Decision Open(Now now);

  Decision Decide(const Event& event, Now now);
  // When the next Tick is due at the latest.
  SteadyTime NextDeadline() const;

  // --- questions; none changes anything ---
  const State& state() const;
  absl::StatusOr<v1::RunStatus> GetRun(const std::string& run_id, Now now) const;
  std::vector<v1::RunStatus> ListRuns(Now now) const;
  // Live nodes with their metrics addresses, in NodeId order.
  std::vector<v1::NodeStatus> Nodes() const;
  // Those, the drained, and the lost ones of runs that have not ended, in NodeId order.
  std::vector<v1::NodeStatus> ListNodes(Now now) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline::core
