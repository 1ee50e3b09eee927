// What an agent does, pure: Handle takes one event and the time, and answers with actions for
// the shell (agent.cc) to carry out in order. It reads no clock, no socket and no file.
//
// A generation's life on this node:
//   waiting   its slots still hold workers of another generation, or its ranks' state is on its way
//   running   its workers train; each slot goes  spawned -> connected -> (finished, left) -> ended
//   ending    the coordinator ended it: workers are told to leave it, killed when they do not
// and it is forgotten (GenerationGone) when the last of its workers has left it or ended. One that
// has left is idle: the run's next generation takes it up, whatever rank it gives the slot.
// A *slot* is a place for a rank, a *seat* one for a process. Some processes of a run are kept
// warm: started, without a slot, until a worker has died and the next generation gives its slot
// away.
//
// Invariant: a seat holds at most one worker, and of the workers at most one is a slot's; nothing
// of a generation older than the run's newest, of an ended worker's session, or of an epoch below
// the highest seen, has any effect.
// What steps led to (parts, ends, failures) is told after the steps' records are written, so that
// who hears of a run's end finds its last step in the file; a disk that takes longer than
// kRecordsPatience heartbeats is not waited for.
// Threading: not safe by itself; the shell serialises.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/clock.h"
#include "common/exit_code.h"
#include "common/process.h"
#include "common/status.h"
#include "common/timeouts.h"
#include "paceline/v1/agent.pb.h"
#include "paceline/v1/coordinator.pb.h"
#include "worker/agent/outbox.h"
#include "worker/agent/snapshot_ledger.h"
#include "worker/agent/snapshot_tasks.h"
#include "worker/telemetry/agent_view.h"

namespace paceline {

// --- events ---
struct CoordinatorSaid {
  v1::CoordinatorMessage message;
};
// The stream to the coordinator has ended; the shell connects again by itself.
struct CoordinatorLost {
  absl::Status reason;
};
struct WorkerSaid {
  int seat = 0;
  std::uint64_t session = 0;  // of the seat, unique in the agent's life; Hello opens it
  v1::WorkerMessage message;
  std::vector<std::string> stderr_tail;  // with RankFailed
};
struct WorkerSessionClosed {
  int seat = 0;
  std::uint64_t session = 0;
};
struct WorkerExited {
  int seat = 0;
  ProcessExit exit;
  std::vector<std::string> stderr_tail;
};
struct WorkerNotSpawned {
  int seat = 0;
  absl::Status reason;
};
// `number` of the AppendRecord that is done with. 0: it was refused at once, and those before it
// are not done with.
struct RecordWritten {
  std::uint64_t number = 0;
  absl::Status status;
};
// Of the SelfTest that was begun last.
struct SelfTested {
  std::uint64_t id = 0;
  absl::Status status;
  double seconds = 0;
};
struct Timer {};
// SIGTERM; a second one ends the workers at once.
struct ShutdownAsked {
  std::string reason;
};
using AgentEvent =
    std::variant<CoordinatorSaid, CoordinatorLost, WorkerSaid, WorkerSessionClosed, WorkerExited,
                 WorkerNotSpawned, RecordWritten, SelfTested, SnapshotLost, SnapshotCopied,
                 SnapshotFetched, Timer, ShutdownAsked>;

// --- actions ---
struct TellCoordinator {
  v1::AgentMessage message;
  bool newest_only = false;  // replaces one of these that still waits to be written
};
// The coordinator at the other end must not be obeyed: end the stream, look for another.
struct DropCoordinator {
  std::string reason;
};
struct SpawnWorker {
  int seat = 0;
  v1::GenerationKey key;
  std::optional<int> rank;  // none: it is to be kept warm
  std::string log_path;
};
// What the worker writes from now on belongs to another rank's log.
struct SwitchLog {
  int seat = 0;
  v1::GenerationKey key;
  int rank = 0;
  std::string log_path;
};
// Begin a self-test; SelfTested answers it. One at a time.
struct BeginSelfTest {
  std::uint64_t id = 0;
  std::string folder;
};
struct TellWorker {
  int seat = 0;
  v1::WorkerCommand command;
};
struct KillWorker {
  int seat = 0;
};
// A line of steps.jsonl or evals.jsonl; RecordWritten answers it.
struct AppendRecord {
  std::string path;
  std::string line;
  std::uint64_t number = 0;      // counts from 1
  std::int64_t unless_step = 0;  // above 0: the file may have it already (RecordWriter::Append)
};
// The run's snapshots on this node are of no use any more.
struct RemoveSnapshots {
  std::string run_id;
};
// Some of them.
struct RemoveSnapshotFiles {
  std::string run_id;
  std::vector<SnapshotFiles> files;
};
struct EndAgent {
  ExitCode code = ExitCode::kDone;
  std::string reason;
};
using AgentAction =
    std::variant<TellCoordinator, DropCoordinator, SpawnWorker, SwitchLog, BeginSelfTest,
                 TellWorker, KillWorker, AppendRecord, CopySnapshots, FetchSnapshots, StopCopying,
                 RemoveSnapshots, RemoveSnapshotFiles, EndAgent>;

class AgentCore {
 public:
  // Of an agent with so many slots: seats are numbered from 0.
  static int SeatsFor(int slots) { return 2 * slots; }

  // `snapshot_root`: see AgentOptions. `found`: what a former agent of the node has left there.
  AgentCore(std::string node_name, int slots, std::uint64_t incarnation, std::string snapshot_root,
            const std::vector<FoundSnapshot>& found);

  std::vector<AgentAction> Handle(const AgentEvent& event, Now now);
  // When a Timer event is due at the latest.
  SteadyTime NextDeadline() const;

  // What a former agent has left, to be registered with.
  std::vector<v1::GenerationGone> LeftBehind() const { return snapshots_.AllHeld(); }

  // For /metrics.
  AgentView View() const;
  bool registered() const { return registered_; }
  const Timeouts& timeouts() const { return timeouts_; }

 private:
  enum class Phase { kWaiting, kRunning, kEnding };
  using Key = std::pair<std::string, std::uint64_t>;  // run, generation

  struct Generation {
    v1::StartGeneration start;  // its windows grow by what is granted
    Phase phase = Phase::kWaiting;
    std::int64_t tokens = 0;
    std::int64_t windows_asked = 0;  // the highest step that windows were asked for,
    SteadyTime windows_asked_at;     // and when
    std::map<std::int32_t, RankView> ranks;
    std::optional<v1::Peers> peers;
    std::optional<v1::StopGeneration> stop;
    std::set<std::int32_t> fetching;  // ranks whose state is on its way, or will not come
    bool forgotten = false;           // nobody wants what its workers hold
    std::optional<int> warm_workers;  // that the run file asks for here, once that was looked up
  };

  struct Worker {
    Key key;        // of a warm worker: its run, and no generation
    int slot = -1;  // -1: it is kept warm, and `idle`
    std::int32_t rank = 0;
    std::string log_path;
    std::uint64_t session = 0;  // 0: not connected yet
    bool session_open = false;
    bool loaded = false;  // warm: it has said so,
    SteadyTime heard_at;  // and when last, or was started
    bool ready = false;   // its state is there
    bool finished = false;
    bool left = false;  // its generation, and lives
    std::int64_t held_step = 0;
    bool idle = false;  // and its generation has ended: `key` is a former one
    bool failure_told = false;
    bool survives = false;                  // that failure
    std::optional<v1::RankFailed> failure;  // said, held until the exit's details are known
    std::optional<ProcessExit> exit;
    std::vector<std::string> stderr_tail;
    std::optional<SteadyTime> settle_at;  // tell the failure, or take the exit as it is
    std::optional<SteadyTime> kill_at;
    std::optional<SteadyTime> idle_until;
  };

  void On(const CoordinatorSaid& event);
  void On(const CoordinatorLost& event);
  void On(const WorkerSaid& event);
  void On(const WorkerSessionClosed& event);
  void On(const WorkerExited& event);
  void On(const WorkerNotSpawned& event);
  void On(const RecordWritten& event);
  void On(const SelfTested& event);
  void On(const SnapshotLost& event);
  void On(const SnapshotCopied& event);
  void On(const SnapshotFetched& event);
  void On(const Timer& event);
  void On(const ShutdownAsked& event);

  void OnRegistered(const v1::Registered& registered);
  void OnStart(const v1::StartGeneration& start);
  void OnRepeat(const Generation& known, const v1::StartGeneration& start);
  void OnPeers(const v1::Peers& peers);
  void OnGrant(const v1::WindowGrant& grant);
  void OnStop(const v1::StopGeneration& stop);
  void OnCommitted(const v1::CheckpointCommitted& committed);
  void OnEnd(const v1::EndGeneration& end);
  void OnSelfTest(const v1::SelfTest& test);

  void OnHello(int seat, std::uint64_t session, const v1::WorkerHello& hello);
  void OnStep(const Worker& worker, Generation& generation, const v1::StepRecord& step);
  void OnProgress(const Worker& worker, Generation& generation, const v1::RankProgress& progress);
  void OnWindowRequest(Generation& generation, const v1::WindowRequest& request);
  void OnFailed(Worker& worker, v1::RankFailed failed, std::vector<std::string> stderr_tail);
  void OnLeft(int seat, const v1::RankLeft& left);
  void BecomeIdle(int seat);
  void EndIdle(int seat);
  void Relay(Worker& worker, const v1::WorkerMessage& said);
  // --- agent_core_snapshots.cc ---
  // Those of runs that have neither a generation nor a worker here.
  void RemoveUnusedSnapshots();
  // Likewise, once there has been none for long.
  void ExpireSnapshots();
  void OnForget(const v1::GenerationKey& key);
  // What its ranks are to begin from and does not lie here is fetched before their workers start.
  void BeginFetching(Generation& generation);
  void CopyBuddies(const Generation& generation);
  // Where the rank finds its state.
  void TellSource(const v1::StartGeneration& start, v1::RankStart& rank_start) const;
  bool IsIdle() const;  // it has neither a generation nor a worker

  absl::Status CheckStart(const v1::StartGeneration& start) const;
  // --- who sits where (agent_core_seats.cc) ---
  void StartWaiting();
  // Whether every slot is empty or has an idle worker of the run; others that are idle are told to
  // go.
  bool MakeRoom(const Generation& generation);
  void Begin(const Key& key, Generation& generation);
  // The seat of the slot's worker; -1: it has none.
  int SeatOf(int slot) const;
  // The seat of a warm worker of the run that is ready; -1: there is none.
  int WarmSeat(const std::string& run_id) const;
  // One that is empty, the slot's own if it is.
  int FreeSeat(int slot) const;
  // Starts what the run files ask for, one at a time, and not before every rank here has completed
  // a step: a recovery needs the processors itself.
  void KeepWarm();
  void EndSilentWarm();
  void StartWarm(const v1::StartGeneration& start);
  void OnWarmHello(int seat, bool same_release);
  void OnWarmEnded(int seat);
  // The run has left the node, maybe until its next generation: they wait as long as idle workers.
  void ReleaseWarm(const std::string& run_id);

  void TellStart(int seat, const Generation& generation);
  void BeginEnd(const Key& key, const std::string& reason);
  static std::chrono::milliseconds StepTime(const Generation& generation);
  void ForgetIfGone(const Key& key);
  void EndIfIdle();
  void EndWorkers(ExitCode code, const std::string& reason, bool at_once);
  void SettleIfEnded(int seat);
  void TellFailure(Worker& worker);
  void Heartbeat(bool newest_only);
  void TellGone(const v1::GenerationKey& key);
  void TellFailed(const Key& key, std::int32_t rank, const absl::Status& status);
  // The records that a generation's live state brings along may have been written before.
  void Record(const Generation& generation, const char* file, std::int64_t step, std::string line);
  void Tell(v1::AgentMessage message);  // through the outbox
  // Tells at once, or when the records appended so far are written. A `repeat` needs no heartbeat
  // with it.
  void TellAfterRecords(v1::AgentMessage message, bool repeat);
  void TellHeld();
  void Broadcast(const v1::GenerationKey& key, const v1::WorkerCommand& command);
  // The first step that no window holds.
  static std::int64_t GrantedUntil(const Generation& generation);
  // The running generation of `key`, or null.
  Generation* FindRunning(const v1::GenerationKey& key);
  Worker* FindWorker(int seat);
  // Carries out `action` at the end of Handle, after those before it.
  void Do(AgentAction action) { actions_.push_back(std::move(action)); }

  // A message that waits for records.
  struct Held {
    v1::AgentMessage message;
    bool repeat = false;
    std::uint64_t record = 0;
    SteadyTime until;
  };

  const std::string node_name_;
  const std::uint64_t incarnation_;
  const std::string snapshot_root_;
  const int slots_;

  Now now_;  // of the event being handled
  std::vector<AgentAction> actions_;

  Timeouts timeouts_;
  std::uint64_t epoch_ = 0;  // the highest seen
  bool registered_ = false;
  std::uint64_t node_id_ = 0;
  std::chrono::milliseconds heartbeat_interval_;
  SteadyTime heartbeat_at_;
  std::uint64_t heartbeat_sequence_ = 0;
  Outbox outbox_;
  std::uint64_t records_appended_ = 0;
  std::uint64_t records_written_ = 0;
  std::deque<Held> held_;  // empty while there is no coordinator: the outbox has them

  std::map<Key, Generation> generations_;
  SnapshotLedger snapshots_;
  std::optional<SteadyTime> snapshots_until_;   // they expire
  std::map<std::string, std::uint64_t> ended_;  // the newest ended generation of a run
  std::vector<std::optional<Worker>> seats_;
  std::chrono::milliseconds warm_pause_{0};  // after the last end of a warm worker
  std::optional<SteadyTime> warm_due_;       // before which none is started
  std::optional<EndAgent> ending_;
  bool replaced_ = false;                   // by another agent of this node, and ending for that
  std::optional<std::uint64_t> self_test_;  // that runs
  std::optional<v1::SelfTest> next_test_;   // asked for meanwhile
  AgentCounters counters_;
};

}  // namespace paceline
