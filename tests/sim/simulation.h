// A cluster in one thread: the real coordinator core, and agents, workers, network, disk, clock
// and a user modelled after the protocol. Everything random comes from one seed, so a seed that
// breaks a promise breaks it every time.
//
// What goes wrong, as the options say: sessions break (what was under way in either direction is
// lost), calls and their answers get lost and are repeated, agents and workers die, manifests
// fail to be written, checkpoints turn out damaged, and the coordinator dies between any two
// journal writes and restarts from the facts that were durable.
// Invariant: events happen in the order of virtual time, then of scheduling.
// Threading: one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <vector>

#include "common/clock.h"
#include "coordinator/core/core.h"
#include "tests/sim/promises.h"

namespace paceline::sim {

// splitmix64: the same numbers on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next();
  // In [low, high].
  std::int64_t Between(std::int64_t low, std::int64_t high);
  bool OneIn(std::int64_t n) { return n > 0 && Between(1, n) == 1; }

 private:
  std::uint64_t state_;
};

class Agent;
class Simulation;

struct Options {
  std::uint64_t seed = 1;
  int nodes = 2;
  int slots_per_node = 2;
  int spares = 0;
  int min_nodes = 0;  // 0: the run file's default
  int pipeline = 1;
  int micro_batches_per_slot = 1;
  std::int64_t steps = 60;
  std::int64_t checkpoint_interval = 20;
  std::int64_t keep = 2;
  std::chrono::milliseconds step_time{200};
  bool dedicated_nodes = true;  // agents register for this run alone
  // Each is a mean number of events until it happens once; 0: never.
  std::int64_t heartbeats_per_session_break = 0;
  std::int64_t steps_per_agent_death = 0;
  std::int64_t steps_per_worker_death = 0;
  std::int64_t decisions_per_coordinator_death = 0;
  std::int64_t manifests_per_failure = 0;
  std::int64_t starts_per_damage = 0;
  std::int64_t calls_per_loss = 0;
  std::int64_t steps_per_drain = 0;
  std::int64_t self_tests_per_failure = 0;
  std::int64_t deaths_per_lost_machine = 0;  // with its memory, of agents' deaths
  std::int64_t snapshot_interval = 0;        // steps; 0: none are taken
  std::int64_t snapshots_per_omission = 0;   // the one before is not whole yet
  bool agents_come_back = true;              // somebody starts a dead one again
  std::optional<std::int64_t> stop_at_step;  // the user stops it there, then resumes
  // Called after every step of a generation: what a scenario does by hand.
  std::function<void(Simulation& world, std::int64_t step)> on_step;
  // Replaying all facts is compared with the live state after every so many events.
  int events_per_replay_check = 1;
  std::chrono::minutes patience{24 * 60};  // of virtual time
};

struct Result {
  bool completed = false;
  std::string trouble;  // empty: every promise held
  v1::RunStatus status;
  std::int64_t virtual_ms = 0;
  std::uint64_t events = 0;
  std::uint64_t facts = 0;
  int quarantines = 0;
  int coordinator_lives = 0;
  int resumes = 0;
};

// What follows a step of all ranks.
struct StepEnd {
  bool checkpoint = false;
  bool last = false;     // of the generation
  bool stopped = false;  // before the run's last step
};

// One generation's workers, over all nodes: they step together or not at all.
struct Training {
  v1::GenerationKey key;
  std::int64_t step = 0;
  bool stopping = false;
  bool moving = false;
  bool moving_now = false;  // at any step
  bool stepping = false;
  bool over = false;
  std::map<int, Agent*> agents;  // by index; those that have their peers
  int world = 0;
  int ranks_with_peers = 0;
};

class Simulation {
 public:
  explicit Simulation(const Options& options);
  ~Simulation();

  // Until the run is completed, a promise is broken, or patience ends.
  Result Run();

  // --- a scenario's hands ---
  void KillAgent(int agent);
  void KillMachineOf(std::int32_t rank);  // with its snapshots
  void StartAgent(int agent, std::chrono::milliseconds later);
  void BreakSession(int agent);
  void KillWorker(int agent);
  void Drain(const std::string& node);

 private:
  friend class Agent;

  // --- the world ---
  Now now() const {
    return {SteadyTime(std::chrono::nanoseconds(clock_)), kWallStartMs + clock_ / 1'000'000};
  }
  // That stand, as far as the coordinator knows; none while it is away.
  std::size_t Checkpoints() const;
  void After(std::chrono::microseconds delay, std::function<void()> what);
  std::chrono::microseconds NetworkDelay() {
    return std::chrono::microseconds(random_.Between(50, 5000));
  }

  // --- the coordinator and its disk ---
  void StartCoordinator();
  void Deliver(const core::Event& event);
  void Carry(const core::Decision& decision);
  void CarryEffect(const core::Effect& effect);
  void Remove(const std::string& folder);
  void Sweep(const core::SweepCheckpoints& sweep);
  // A folder with parts and no manifest.json, or "".
  std::string LeftOver() const;
  void CrashAfter(const core::Decision& decision);
  void ScheduleTick();
  void CheckReplay();
  void DeliverFrom(core::SessionId session, int agent, const v1::AgentMessage& message);

  // --- the user ---
  void Submit(bool resume);
  void CallSubmit(const v1::SubmitRunRequest& request);
  void OnAnswer(const core::AnswerCall& answer);
  void Watch();
  void StartDeadAgents();
  std::string RunFileText() const;
  std::int64_t GlobalBatch() const {
    return std::int64_t{options_.nodes} * options_.slots_per_node *
           options_.micro_batches_per_slot / options_.pipeline;
  }
  // Between drains somebody looks at what was drained, and mends it.
  void UndrainLater();
  void CheckProgress(const v1::RunStatus& status);

  // --- training, shared by the agents ---
  Training& TrainingOf(const v1::GenerationKey& key, int world, std::int64_t start_step);
  void TryStep(const std::shared_ptr<Training>& training);
  void Step(const std::shared_ptr<Training>& training);
  void Halt(Training& training);

  static constexpr std::int64_t kWallStartMs = 1'700'000'000'000;

  struct Scheduled {
    std::int64_t at;
    std::uint64_t order;
    std::function<void()> what;
    bool operator<(const Scheduled& other) const {
      return at != other.at ? at > other.at : order > other.order;
    }
  };

  Options options_;
  Random random_;
  std::chrono::nanoseconds::rep clock_ = 0;
  std::uint64_t scheduled_ = 0;
  std::priority_queue<Scheduled> queue_;

  Disk disk_;
  std::unique_ptr<Promises> promises_;
  std::vector<v1::Fact> journal_;
  std::optional<v1::StateSnapshot> snapshot_;
  core::State replay_;  // of all durable facts
  std::unique_ptr<core::Core> core_;
  bool coordinator_up_ = false;
  int coordinator_lives_ = 0;
  std::int64_t tick_at_ = INT64_MAX;
  std::map<core::SessionId, int> sessions_;  // to the agent's index
  std::uint64_t next_session_ = 1;
  std::uint64_t next_call_ = 1;
  std::uint64_t next_request_ = 1;
  std::map<core::CallId, v1::SubmitRunRequest> calls_;
  std::set<core::CallId> stop_calls_;
  std::set<std::string> undraining_;
  std::int64_t stuck_since_ = -1;
  std::string waiting_for_;  // the submission that was not answered yet

  std::vector<std::unique_ptr<Agent>> agents_;
  std::map<std::uint64_t, std::shared_ptr<Training>> trainings_;  // by generation
  std::uint64_t events_ = 0;
  int resumes_ = 0;
  bool stop_asked_ = false;
  bool done_ = false;
  std::string trouble_;
};

}  // namespace paceline::sim
