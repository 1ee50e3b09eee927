// The inside of Core: durable state, what lives beside it, and one method for each thing that
// can happen. Split over core.cc (dispatch, facts, clock), core_nodes.cc (membership),
// core_members.cc (which nodes get work: drains, quarantine, self-tests, moves), core_plans.cc
// (which nodes a run goes on with), core_restore.cc (what they hold of its state), core_runs.cc
// (generations and the run's life), core_training.cc (what ranks say while they train),
// core_stalls.cc (who holds them up), core_status.cc (questions).
// Invariant: everything here but `state_` can be lost at any instant; agents say it again.
// Threading: confined to the coordinator loop; holds no lock.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/timeouts.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/core.h"
#include "coordinator/core/deadlines.h"
#include "coordinator/core/membership.h"
#include "coordinator/core/planner.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/restore.h"
#include "coordinator/core/stalls.h"

namespace paceline::core {

struct RankRuntime {
  NodeId node;
  int slot = 0;
  bool ready = false;
  std::string address;
  bool finished = false;
  bool failed = false;  // has failed because of a peer
  v1::RankProgress progress;
};

// An open generation, as far as a crash may forget it.
struct GenerationRuntime {
  v1::GenerationKey key;
  Timeouts limits;
  std::vector<RankRuntime> ranks;
  std::map<NodeId, std::vector<std::int32_t>> ranks_of;  // in rank order
  std::size_t ready = 0;
  std::size_t finished = 0;
  std::size_t begun = 0;                        // ranks that are known to have begun to compute
  std::map<NodeId, std::vector<Buddy>> copies;  // of others' snapshots, by the node that keeps them
  // Nodes that others still take up state from, though they have no part in this generation: they
  // are told to forget the one before when all ranks have taken it up.
  std::vector<NodeId> forget_later;
  bool stepped = false;        // the first step is known to be done
  std::int64_t last_step = 0;  // the highest completed by a rank
  double step_seconds = 0;     // smoothed; 0: none timed yet
  StallWatch watch;
  std::optional<v1::StepRecord> step;
  std::optional<v1::EvalRecord> eval;
  SteadyTime startup_deadline;
  CheckpointsInFlight checkpoints;
  std::optional<v1::RankFailed> failure;  // secondary: its cause may still come
  SteadyTime failure_deadline;
  std::int64_t trouble_ms = 0;   // what fails was last known to be well; 0: nothing is known to
  std::int64_t final_step = -1;  // where every rank finished
  SteadyTime final_deadline;
  bool heard_after_finish = false;  // the last records of rank 0's node are in
};

// A live node, as far as a crash may forget it.
struct NodeRuntime {
  std::optional<SessionId> session;
  std::int64_t last_heartbeat_ms = 0;  // the journal's clock
  // After a reconnection: nobody knows yet which generations its workers belong to.
  bool heard = true;
  std::optional<v1::GenerationKey> draining;  // told to end, not yet gone
  SteadyTime draining_since{};
  bool released = false;
  std::uint64_t test = 0;   // the self-test that it was asked for; 0: none is under way
  std::string test_run;     // whose
  std::string tested_for;   // the run that it has passed one for
  std::string test_failed;  // the run whose test it failed: that asks again a while later
  // By run: the generation up to which it was told, in this session, to forget what it holds.
  std::map<std::string, std::uint64_t> told_to_forget;
};

struct Core::Impl {
  explicit Impl(CoreOptions options) : options_(options) {}

  // --- core.cc ---
  Decision Open(Now now);
  Decision Decide(const Event& event, Now now);
  SteadyTime NextDeadline() const;
  void On(const AgentSaid& event);
  void On(const SessionClosed& event);
  void On(const SubmitRunCalled& event);
  void On(const StopRunCalled& event);
  void On(const DrainNodeCalled& event);
  void On(const UndrainNodeCalled& event);
  void On(const ManifestWritten& event);
  void On(const PublishFailed& event);
  void On(const Tick& event);
  // This process stood still for so long at most. Nobody was heard meanwhile: no limit counts it.
  void Postpone(SteadyTime::duration late);
  // A fact takes effect on the state here and goes to the journal with the decision.
  void Emit(v1::Fact fact);
  // The journal's clock: wall time at Open, moved on by the steady clock, never back.
  std::int64_t WallMs(Now now) const;
  void Send(NodeId node, v1::CoordinatorMessage message);
  void SendToAll(const GenerationRuntime& generation, const v1::CoordinatorMessage& message);
  void Answer(CallId call, absl::Status status, const std::string& run_id = "");

  // --- core_nodes.cc ---
  void OnRegister(SessionId session, const v1::RegisterNode& node);
  void OnHeartbeat(NodeId node, const v1::Heartbeat& heartbeat);
  void OnGone(NodeId node, const v1::GenerationGone& gone);
  void Join(NodeId id, const v1::RegisterNode& info);
  // The node is no member any more: its charge is closed and its generation ended.
  // `failed`: nobody had sent it away.
  void LoseNode(NodeId node, const std::string& reason, const absl::Status& to_session,
                bool failed = true);
  // Ranks that were to begin with what the lost node holds begin with something else.
  void EndReadingFrom(NodeId lost, const std::string& reason);
  void BindSession(SessionId session, NodeId node);
  void GrantLease(NodeId node);
  void TellWhereItStands(NodeId node);
  // What names a generation that is not open is answered by its end.
  void Fence(NodeId node, const v1::GenerationKey& key);
  void Drain(NodeId node, const v1::GenerationKey& key, const std::string& reason);
  void Charge(NodeId node);
  void ChargeAll(const std::set<NodeId>& nodes);
  void UpdateFree(NodeId node);
  std::vector<FreeNode> FreeNodesFor(const Run& run) const;
  std::int64_t BudgetOf(const Node& node) const;

  // --- core_members.cc ---
  void OnSelfTestDone(NodeId node, const v1::SelfTestDone& done);
  void OnTestDeadline(NodeId node);
  void FailSelfTest(NodeId node, const std::string& error);
  int FailuresOf(const Node& node) const;  // in the last hour
  // It has failed too often, and every run that may use it can go on without it.
  bool ShallBeQuarantined(NodeId node) const;
  // Such a node gets no more work. `run_id`: the one that it failed, if any.
  void MaybeQuarantine(NodeId node, const std::string& run_id, const std::string& last_failure);
  // After a generation. A node that holds the last copy of the run's state stays until the run has
  // trained again and moves off it (OverdueNode), which loses no step.
  void QuarantineAfter(const Run& run);
  // One of its generation that shall be quarantined, where the others and free nodes can do
  // without it; replaced: those that have passed a test do as well as all of them would.
  struct Overdue {
    NodeId node;
    bool replaced = false;
  };
  std::optional<Overdue> OverdueNode(const Run& run) const;
  bool CanGoOnWithout(const Run& run, NodeId node) const;
  // Runs that train on a drained node or one that keeps failing, or on fewer than they asked for
  // while others are free, are asked to end their generation at a checkpoint.
  void ConsiderMoves();
  void ConsiderMove(const Run& run);
  // Of its own nodes and free ones, if that is more of what it asked for than it has.
  std::optional<Plan> LargerPlan(const Run& run, bool tested_alone) const;
  void RequestMove(const Run& run, const std::string& reason, bool at_checkpoint);
  void SendMove(const Run& run, std::optional<NodeId> only);
  // Nodes that `run` could have, were it to begin anew: its own and the free ones, tested or not.
  std::vector<FreeNode> NodesWithin(const Run& run, bool tested_alone) const;
  void BeginSelfTests(const Run& run);
  FreeNode FreeNodeOf(const Run& run, NodeId node) const;

  // --- core_plans.cc ---
  void TryPlans();
  void TryPlan(const Run& run);
  // How long it waits for all of its nodes, and until when.
  SteadyTime PatienceOf(const Run& run);
  // A node of its last generation is away, and nobody has sent it away.
  bool MayComeBack(const Run& run) const;
  SteadyTime LeavingUntil(const Run& run) const;
  // On free nodes: those that the run has had all the time and those that have passed its
  // self-test; others, and last those that have failed it or corrupted state, only where there are
  // fewer ranks than before without them.
  Plan BestPlan(const Run& run) const;
  void StartGeneration(const Run& run, const Plan& plan);
  bool StaysOn(const Run& run, const Node& node) const;

  // --- core_restore.cc ---
  // What the node holds in memory of the run's last generation.
  void NoteHeld(NodeId node, const v1::GenerationGone& gone);
  // It may hold something of a generation that its run has gone on without, and not have been told:
  // it was out of hearing, or the coordinator was.
  void ForgetStale(NodeId node, const v1::GenerationKey& key);
  // What the run can go on from with this plan.
  RestorePoint RestoreWith(const Run& run, const Plan& plan) const;
  // Why a run that had come further goes on from disk; empty: it loses nothing by that.
  std::string WhyFromDisk(const Run& run, const RestorePoint& restore) const;
  // Which of others' snapshots the node keeps copies of, and which its ranks take up.
  void AddSnapshots(const Run& run, NodeId node, v1::StartGeneration& start) const;
  // The snapshot that a rank was to take up, and could not, is not planned with again.
  void Distrust(const Run& run, const GenerationRuntime& generation, const v1::RankFailed& failure);
  // Nodes of `former` that are not in the run's new one need not keep what they hold, but for those
  // that ranks of it take up their state from: these are told later.
  void ForgetHeld(const v1::GenerationStarted& former);
  void ForgetLater(GenerationRuntime& generation);
  void SendForget(NodeId node, const v1::GenerationKey& key);

  // --- core_runs.cc ---
  void Submit(CallId call, v1::SubmitRunRequest request);
  // A resume of a run whose generation is open on nodes that nobody has heard of yet waits until
  // they speak or their leases end.
  void RetryDeferred();
  // Checkpoints that the submission names as damaged do not stand any more.
  void DiscardDamaged(const Run& run);
  // What dead ranks and crashes left in the run's checkpoint folder goes.
  void Sweep(const Run& run);
  // The run goes on from `step`: the windows after it go back.
  void RollBackTo(const Run& run, std::int64_t step);
  void AddRuntime(const Run& run);
  void SendStart(const Run& run, NodeId node);
  // Ends the open generation, and goes on as the run's state says. `failure` empty: it was done.
  void EndGeneration(std::string run_id, const std::string& reason, const v1::RankFailed& failure);
  void RememberRanks(const GenerationRuntime& generation);
  // A node on which workers of `key` were to end has none of them any more.
  void OnLeft(const v1::GenerationKey& key);
  void FailGeneration(GenerationRuntime& generation, const v1::RankFailed& failure);
  // The one place that decides what follows a generation: the run's end, or another generation.
  // It follows from durable state alone, so that a restart in between decides alike.
  void AfterGeneration(const std::string& run_id);
  void EndRun(const Run& run, v1::RunState state, const std::string& reason, bool retryable);
  void UpdateDeadline(const std::string& run_id);
  void OnRunDeadline(const std::string& run_id);
  void GrantWindows(GenerationRuntime& generation, std::int64_t until_step);
  v1::RankFailed FailureOf(const GenerationRuntime& generation, std::int32_t rank,
                           v1::FailureCause cause, absl::StatusCode code,
                           const std::string& error) const;

  // --- core_training.cc ---
  void OnProgress(NodeId node, const v1::NodeProgress& progress);
  void OnReady(NodeId node, const v1::RankReady& ready);
  void OnPart(NodeId node, const v1::CheckpointPart& part);
  void OnCheckpointFailed(NodeId node, const v1::CheckpointFailed& failed);
  void OnWindowRequest(NodeId node, const v1::WindowRequest& request);
  void OnFinished(NodeId node, const v1::RankFinished& finished);
  void OnFailed(NodeId node, const v1::RankFailed& failed);
  // The generation's first step is done, or what comes before it: it has started up.
  void OnStepped(GenerationRuntime& generation);
  // Its first step is done, and every rank has told when it began.
  void TellFirstStep(const GenerationRuntime& generation);
  void SendPeers(const GenerationRuntime& generation, std::optional<NodeId> only);
  void WriteNextManifest(GenerationRuntime& generation);
  void Commit(GenerationRuntime& generation, std::int64_t step);
  void Retire(const Run& run);
  void DiscardInFlight(GenerationRuntime& generation, std::int64_t step, const std::string& reason);
  static Effect RemovalOf(const v1::CheckpointDiscarded& discarded);
  // `damaged`: somebody found it so, who may be wrong: its folder is kept under another name.
  void Discard(const Run& run, std::int64_t step, const std::string& folder,
               const std::string& reason, bool damaged = false);
  void SettleFinal(GenerationRuntime& generation);
  // The open generation that `key` names and `node` takes part in; nullptr (and the node is
  // fenced): it is over. `rank` must be one of the node's; -1: none is named.
  GenerationRuntime* Current(NodeId node, const v1::GenerationKey& key, std::int32_t rank);
  std::string NodeNameOf(const GenerationRuntime& generation, std::int32_t rank) const;

  // --- core_stalls.cc ---
  // After OnProgress: ends a generation that has stood still for too long, naming who is at fault.
  void WatchProgress(NodeId node, const v1::GenerationKey& key);

  // --- core_status.cc ---
  v1::RunStatus StatusOf(const Run& run) const;
  v1::NodeStatus StatusOf(const Node& node) const;
  v1::NodeState StateOf(const Node& node, bool holds_ranks) const;
  std::string WaitingReason(const Run& run) const;

  const Run& RunOf(const GenerationRuntime& generation) const {
    return state_.runs.at(generation.key.run_id());
  }

  CoreOptions options_;
  State state_;

  std::map<SessionId, NodeId> sessions_;
  std::map<NodeId, NodeRuntime> nodes_;  // the live ones
  LeaseTable leases_;
  std::set<NodeId> free_;  // nodes that could take a generation now
  std::int64_t free_slots_ = 0;
  DeadlineSet<NodeId> drains_;
  DeadlineSet<NodeId> tests_;  // until a self-test is done, or may be tried again
  std::uint64_t last_test_ = 0;
  std::map<std::string, GenerationRuntime> generations_;             // by run
  std::map<std::string, std::vector<v1::RankProgress>> last_ranks_;  // of ended generations
  std::map<std::string, RecoveryClock> recoveries_;  // by run that has failed and not stepped since
  std::map<std::string, Held> held_;                 // by run that waits for its next generation
  // Most nodes fell silent together: what lies between is at fault, and no node lost by then.
  SteadyTime apart_until_ = SteadyTime::min();
  // Snapshots, by node and rank, that a rank could not begin from. By run, until it steps again.
  std::map<std::string, std::set<std::pair<NodeId, std::int32_t>>> distrusted_;
  DeadlineSet<std::string> run_deadlines_;
  std::map<std::string, SteadyTime> waiting_since_;  // for nodes, by run
  DeadlineSet<std::string> plan_deadlines_;          // when a waiting run looks again
  DeadlineSet<std::string> publish_again_;           // committed checkpoints' folders
  std::deque<std::pair<CallId, v1::SubmitRunRequest>> deferred_;
  bool retry_deferred_ = false;
  bool retry_plans_ = false;
  bool consider_moves_ = false;
  SteadyTime next_charge_;
  SteadyTime due_ = SteadyTime::max();  // NextDeadline() after the last decision
  Now opened_;

  // Of the decision being made.
  Now now_;
  Decision decision_;
};

}  // namespace paceline::core
