// An agent with its workers, as the coordinator sees them. It tells again on every new session
// what was not acknowledged, obeys only the highest epoch, and answers EndGeneration with
// GenerationGone.
// Threading: one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/simulation.h"
#include "worker/agent/snapshot_ledger.h"

namespace paceline::sim {

class Agent {
 public:
  Agent(Simulation* world, int index) : world_(*world), index_(index) {}

  void Start();  // a new incarnation
  // With all its workers; its machine's memory holds the snapshots.
  void Die(bool with_memory = false);
  bool alive() const { return alive_; }
  void LoseSession();  // to notice, and connect again, a while later
  void OnMessage(core::SessionId session, const v1::CoordinatorMessage& message);
  void OnClosed(core::SessionId session, const absl::Status& reason);

  // --- of the generation's training ---
  std::int64_t granted_until() const { return granted_until_; }
  bool Hosts(std::int32_t rank) const { return alive_ && generation_ && slot_of_.contains(rank); }
  bool hosts_rank_0() const { return !ranks_.empty() && ranks_.front() == 0; }
  void OnStepped(std::int64_t step, const StepEnd& end);
  void OnPeerLost();  // a survivor's collective fails
  void WorkerDies();

 private:
  struct Unacked {
    std::int64_t step = 0;  // of a part
    v1::AgentMessage message;
  };
  // What the worker in a slot holds in memory.
  struct Held {
    std::int32_t rank = 0;  // that it was
    int stage = 0;
    std::int64_t step = 0;
  };

  // A file of shared memory, of a whole snapshot.
  struct SnapshotFile {
    std::uint64_t generation = 0;
    std::int64_t step = 0;
  };

  void Connect();
  void Send(v1::AgentMessage message);
  void Tell(std::int64_t step, v1::AgentMessage message);  // until acknowledged
  void Heartbeat(std::uint64_t life);
  void SendHeartbeat();
  void OnStart(const v1::StartGeneration& start);
  void OnSelfTest(const v1::SelfTest& test);
  void EndGeneration(const v1::GenerationKey& key);
  void BecomeReady(const v1::StartGeneration& start);

  // --- agent_snapshots.cc ---
  void FindSnapshots();  // what the agent before has left
  void OnForget(const v1::GenerationKey& key);
  // Fetches what its ranks begin from and does not lie here; then they get ready.
  void TakeUp(const v1::StartGeneration& start);
  void Fetch(const v1::StartGeneration& start, const v1::SnapshotSource& source);
  void TakeSnapshots(std::int64_t step);
  void Take(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step);
  void CopySoon(const v1::SnapshotCopy& copy);
  void Copy(const v1::GenerationKey& key, const v1::SnapshotCopy& copy);
  // A rank's two files in turn.
  void Write(bool copy, std::int32_t rank, const SnapshotFile& file);
  const SnapshotFile* Read(bool copy, std::int32_t rank, std::int64_t step) const;
  Agent* Named(const std::string& node) const;
  void WritePart(std::int32_t rank, std::int64_t step, const StepEnd& end);
  void AskForWindows(std::int64_t step);
  bool Holds(const v1::GenerationKey& key) const;
  // What its living ranks hold in memory of the generation that ends.
  std::map<int, Held> HeldBySlot() const;
  void CheckHeld(const v1::StartGeneration& start);

  Simulation& world_;
  const int index_;
  bool alive_ = false;
  bool released_ = false;
  std::uint64_t life_ = 0;  // counts incarnations and sessions: old timers do nothing
  std::uint64_t incarnation_ = 0;
  std::uint64_t epoch_ = 0;
  std::optional<core::SessionId> session_;
  bool registered_ = false;
  std::int64_t link_busy_until_ = 0;     // messages of one session arrive in order,
  std::int64_t inbound_busy_until_ = 0;  // either way
  std::chrono::milliseconds heartbeat_{500};

  std::optional<v1::StartGeneration> generation_;
  std::vector<std::int32_t> ranks_;
  std::map<std::int32_t, int> slot_of_;
  std::int64_t granted_until_ = 0;
  std::int64_t step_ = 0;
  bool has_peers_ = false;
  std::optional<std::int32_t> dead_rank_;
  bool at_end_ = false;          // its ranks have completed the generation's last step
  std::map<int, Held> held_;     // by slot, since the last generation
  std::uint64_t forgotten_ = 0;  // it was told to forget what it held of this generation, or before
  std::vector<Unacked> unacked_;

  std::map<std::pair<bool, std::int32_t>, std::vector<SnapshotFile>> files_;  // copies?, rank
  SnapshotLedger snapshots_{{}};
  std::vector<v1::GenerationGone> left_behind_;
  int fetching_ = 0;
  std::int64_t started_at_ = 0;

  friend class Simulation;
};

}  // namespace paceline::sim
