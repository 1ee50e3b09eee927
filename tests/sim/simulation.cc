#include "tests/sim/simulation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "launch/cli/lineage_audit.h"
#include "tests/sim/agent.h"

namespace paceline::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr char kRun[] = "run";

std::string Bytes(const v1::StateSnapshot& snapshot) { return snapshot.SerializeAsString(); }

// What `paceline audit` finds wrong with a run of `steps` steps that is complete; empty: nothing.
std::string AuditOf(const std::vector<v1::Fact>& journal, std::int64_t steps) {
  cli::LineageAudit audit(kRun);
  for (const v1::Fact& fact : journal) {
    if (const absl::Status taken = audit.Take(fact); !taken.ok()) {
      return absl::StrCat("the audit refuses the journal: ", taken.message());
    }
  }
  const auto lineage = audit.Finish();
  if (!lineage.ok()) return lineage.status().ToString();
  if (lineage->committed_step == steps) return "";
  return absl::StrCat("the audit finds ", lineage->committed_step, " steps committed");
}

}  // namespace

std::uint64_t Random::Next() {
  std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

std::int64_t Random::Between(std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(Next() % static_cast<std::uint64_t>(high - low + 1));
}

Simulation::Simulation(const Options& options)
    : options_(options),
      random_(options.seed),
      promises_(std::make_unique<Promises>(&disk_, options.nodes, GlobalBatch())) {
  for (int i = 0; i < options.nodes + options.spares; ++i) {
    agents_.push_back(std::make_unique<Agent>(this, i));
  }
}

Simulation::~Simulation() = default;

void Simulation::After(microseconds delay, std::function<void()> what) {
  queue_.push({clock_ + std::chrono::nanoseconds(delay).count(), scheduled_++, std::move(what)});
}

Result Simulation::Run() {
  StartCoordinator();
  Submit(/*resume=*/false);
  for (const auto& agent : agents_) agent->Start();
  After(seconds(1), [this] { Watch(); });
  const std::int64_t end = std::chrono::nanoseconds(options_.patience).count();
  while (!done_ && trouble_.empty() && !queue_.empty() && queue_.top().at < end) {
    Scheduled next = queue_.top();
    queue_.pop();
    clock_ = next.at;
    next.what();
    if (!promises_->breaches().empty()) trouble_ = promises_->breaches().front();
  }
  Result result;
  result.completed = done_;
  result.trouble = trouble_;
  if (trouble_.empty() && !done_) result.trouble = "the run did not end in time";
  if (core_ != nullptr) {
    if (const auto status = core_->GetRun(kRun, now()); status.ok()) result.status = *status;
  }
  if (done_) {
    CheckReplay();
    if (!trouble_.empty()) result.trouble = trouble_;
    if (result.trouble.empty()) result.trouble = AuditOf(journal_, options_.steps);
    const double charged = promises_->ChargedTo(kRun);
    if (promises_->CommittedSteps(kRun) != options_.steps) {
      result.trouble = "the committed lineage does not hold every step once";
    } else if (!disk_.published.contains(result.status.checkpoint())) {
      result.trouble = "the last checkpoint's manifest is not in place";
    } else if (const std::string left = LeftOver(); !left.empty()) {
      result.trouble = absl::StrCat("parts of a checkpoint without a manifest are left: ", left);
    } else if (!(std::abs(charged - result.status.cost()) <= 1e-9 * (1 + charged))) {
      result.trouble =
          absl::StrCat("charges sum to ", charged, ", the run says ", result.status.cost());
    }
  }
  result.virtual_ms = clock_ / 1'000'000;
  result.events = events_;
  result.facts = journal_.size();
  result.quarantines =
      static_cast<int>(std::count_if(journal_.begin(), journal_.end(), [](const v1::Fact& fact) {
        return fact.node_drained().quarantined();
      }));
  result.coordinator_lives = coordinator_lives_;
  result.resumes = resumes_;
  return result;
}

// --- the coordinator and its disk ---

void Simulation::StartCoordinator() {
  ++coordinator_lives_;
  core_ = std::make_unique<core::Core>(
      core::CoreOptions{.epoch = Epoch{static_cast<std::uint64_t>(coordinator_lives_)}});
  std::uint64_t from = 0;
  if (snapshot_) {
    if (!core_->Restore(*snapshot_).ok()) trouble_ = "a snapshot does not restore";
    from = snapshot_->index();
  }
  for (std::uint64_t i = from; i < journal_.size(); ++i) {
    const absl::Status evolved = core_->Evolve(journal_[i]);
    if (!evolved.ok()) trouble_ = evolved.ToString();
  }
  coordinator_up_ = true;
  CheckReplay();
  tick_at_ = INT64_MAX;
  Carry(core_->Open(now()));
  ScheduleTick();
}

void Simulation::DeliverFrom(core::SessionId session, int agent, const v1::AgentMessage& message) {
  if (!coordinator_up_ || !sessions_.contains(session)) return;
  // The agent may not have been told its id, where the answer was lost.
  const auto known = replay_.node_by_name.find(absl::StrCat("node-", agent));
  const std::uint64_t node = known == replay_.node_by_name.end() ? 0 : known->second.value();
  const bool is_sign = node != 0 && (message.has_heartbeat() || message.has_register_());
  // Before the decision: what it charges may reach up to this sign of life.
  if (is_sign) promises_->OnHeartbeat(node, message.incarnation(), now().wall_ms);
  Deliver(core::AgentSaid{session, message});
  if (is_sign && coordinator_up_) promises_->OnHeartbeatTaken(node, message.incarnation());
}

void Simulation::Deliver(const core::Event& event) {
  if (!coordinator_up_) return;
  ++events_;
  const core::Decision decision = core_->Decide(event, now());
  if (random_.OneIn(options_.decisions_per_coordinator_death)) return CrashAfter(decision);
  Carry(decision);
  ScheduleTick();
}

void Simulation::Carry(const core::Decision& decision) {
  for (const v1::Fact& fact : decision.facts) {
    journal_.push_back(fact);
    promises_->OnFact(fact);
    const absl::Status evolved = replay_.Evolve(fact);
    if (!evolved.ok()) trouble_ = evolved.ToString();
  }
  if (options_.events_per_replay_check > 0 &&
      events_ % static_cast<std::uint64_t>(options_.events_per_replay_check) == 0) {
    CheckReplay();
  }
  if (options_.decisions_per_coordinator_death > 0 && random_.OneIn(40)) {
    snapshot_ = core_->Snapshot();
  }
  for (const core::Effect& effect : decision.effects) CarryEffect(effect);
}

void Simulation::CarryEffect(const core::Effect& effect) {
  if (const auto* send = std::get_if<core::SendToAgent>(&effect)) {
    const auto session = sessions_.find(send->session);
    if (session == sessions_.end()) return;
    Agent* agent = agents_[static_cast<std::size_t>(session->second)].get();
    const std::int64_t at = std::max(agent->inbound_busy_until_,
                                     clock_ + std::chrono::nanoseconds(NetworkDelay()).count());
    agent->inbound_busy_until_ = at;
    After(microseconds((at - clock_) / 1000 + 1),
          [agent, to = send->session, message = send->message] { agent->OnMessage(to, message); });
  } else if (const auto* close = std::get_if<core::CloseSession>(&effect)) {
    const auto session = sessions_.find(close->session);
    if (session == sessions_.end()) return;
    Agent* agent = agents_[static_cast<std::size_t>(session->second)].get();
    sessions_.erase(session);
    After(NetworkDelay(),
          [agent, to = close->session, reason = close->reason] { agent->OnClosed(to, reason); });
  } else if (const auto* answer = std::get_if<core::AnswerCall>(&effect)) {
    if (random_.OneIn(options_.calls_per_loss)) return;  // the caller asks again
    OnAnswer(*answer);
  } else if (const auto* write = std::get_if<core::WritePendingManifest>(&effect)) {
    const int life = coordinator_lives_;
    const bool fails = random_.OneIn(options_.manifests_per_failure);
    After(milliseconds(random_.Between(1, 30)), [this, life, fails, write = *write] {
      if (!fails) disk_.pending.insert(write.folder);
      if (life != coordinator_lives_ || !coordinator_up_) return;
      Deliver(core::ManifestWritten{
          write.key, write.step,
          fails ? absl::ResourceExhaustedError("no space left on device") : absl::OkStatus()});
    });
  } else if (const auto* publish = std::get_if<core::PublishManifest>(&effect)) {
    if (!disk_.pending.contains(publish->folder) && !disk_.published.contains(publish->folder)) {
      trouble_ = absl::StrCat("published without a pending manifest: ", publish->folder);
    }
    disk_.published.insert(publish->folder);
  } else if (const auto* remove = std::get_if<core::DeleteCheckpoint>(&effect)) {
    // A slow disk: by then the step may have been trained again.
    After(milliseconds(random_.Between(0, 30'000)),
          [this, folder = remove->folder, life = coordinator_lives_] {
            if (life == coordinator_lives_ && coordinator_up_) Remove(folder);
          });
  } else if (const auto* aside = std::get_if<core::SetCheckpointAside>(&effect)) {
    Remove(aside->folder);
  } else if (const auto* sweep = std::get_if<core::SweepCheckpoints>(&effect)) {
    Sweep(*sweep);
  }
}

std::size_t Simulation::Checkpoints() const {
  return coordinator_up_ ? core_->state().runs.at(kRun).checkpoints.size() : 0;
}

void Simulation::Remove(const std::string& folder) {
  if (core_->state().runs.at(kRun).HasCommitted(folder)) {
    trouble_ = absl::StrCat("a committed checkpoint was deleted: ", folder);
  }
  std::erase_if(disk_.parts, [&folder](const auto& entry) { return entry.first.first == folder; });
  disk_.pending.erase(folder);
  disk_.published.erase(folder);
}

std::string Simulation::LeftOver() const {
  for (const auto& [where, ranks] : disk_.parts) {
    if (!disk_.published.contains(where.first)) return where.first;
  }
  return "";
}

void Simulation::Sweep(const core::SweepCheckpoints& sweep) {
  std::set<std::string> left_over;
  for (const auto& [where, ranks] : disk_.parts) {
    const auto& [folder, generation] = where;
    const bool known =
        std::find(sweep.known.begin(), sweep.known.end(), folder) != sweep.known.end();
    if (generation <= sweep.last_generation && !known && !disk_.published.contains(folder)) {
      left_over.insert(folder);
    }
  }
  for (const std::string& folder : left_over) Remove(folder);
}

void Simulation::CrashAfter(const core::Decision& decision) {
  // Any prefix of the facts is durable; effects leave only after all of them.
  core::Decision durable = decision;
  const auto kept = static_cast<std::size_t>(
      random_.Between(0, static_cast<std::int64_t>(decision.facts.size())));
  durable.facts.resize(kept);
  durable.effects.clear();
  for (const v1::Fact& fact : durable.facts) {
    journal_.push_back(fact);
    promises_->OnFact(fact);
    const absl::Status evolved = replay_.Evolve(fact);
    if (!evolved.ok()) trouble_ = evolved.ToString();
  }
  if (kept == decision.facts.size()) {
    const auto left = random_.Between(0, static_cast<std::int64_t>(decision.effects.size()));
    for (std::int64_t i = 0; i < left; ++i) {
      CarryEffect(decision.effects[static_cast<std::size_t>(i)]);
    }
  }
  coordinator_up_ = false;
  core_.reset();
  sessions_.clear();
  for (const auto& agent : agents_) agent->LoseSession();
  After(milliseconds(random_.Between(100, 20'000)), [this] { StartCoordinator(); });
}

void Simulation::ScheduleTick() {
  const SteadyTime next = core_->NextDeadline();
  const std::int64_t at = std::max<std::int64_t>(next.time_since_epoch().count(), clock_);
  if (at >= tick_at_) return;
  tick_at_ = at;
  After(microseconds((at - clock_) / 1000 + 1), [this, at] {
    if (tick_at_ != at) return;
    tick_at_ = INT64_MAX;
    Deliver(core::Tick{});
    if (coordinator_up_) ScheduleTick();
  });
}

void Simulation::CheckReplay() {
  if (core_ == nullptr || Bytes(core_->Snapshot()) == Bytes(replay_.ToSnapshot())) return;
  trouble_ =
      absl::StrCat("after fact ", journal_.size(), " the live state is not what replay gives");
}

// --- the user ---

std::string Simulation::RunFileText() const {
  const std::string min_nodes =
      options_.min_nodes == 0 ? "" : absl::StrCat("\nmin_nodes = ", options_.min_nodes);
  return absl::StrCat(
      "[run]\nname = \"sim\"\nmember = \"uni-a\"\nseed = 7\n"
      "[model]\nvocab_size = 256\nhidden_size = 32\nnum_hidden_layers = 2\n"
      "num_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 16\nintermediate_size = 64\n"
      "[data]\ntrain = \"/corpus\"\n"
      "[train]\nsequence_length = 16\nmicro_batch_size = 1\nlearning_rate = 1e-3\n"
      "global_batch_size = ",
      GlobalBatch(), "\nsteps = ", options_.steps, "\n[layout]\npipeline = ", options_.pipeline,
      "\n[checkpoint]\ninterval_steps = ", options_.checkpoint_interval, "\nkeep = ", options_.keep,
      "\n[failure]\nsnapshot_interval_steps = ", options_.snapshot_interval,
      "\n[launch]\nnodes = ", options_.nodes, "\nslots_per_node = ", options_.slots_per_node,
      "\nspares = ", options_.spares, min_nodes, "\n[rates]\nslot_hour = ", kSlotHour, "\n");
}

void Simulation::Submit(bool resume) {
  v1::SubmitRunRequest request;
  request.set_request_id(absl::StrCat("request-", next_request_++));
  request.set_run_id(kRun);
  request.set_run_file(RunFileText());
  request.set_run_dir("/runs/run");
  request.set_corpus_digest("c0ffee");
  request.set_corpus_samples(1000);
  request.set_resume(resume);
  waiting_for_ = request.request_id();
  CallSubmit(request);
}

void Simulation::CallSubmit(const v1::SubmitRunRequest& request) {
  if (waiting_for_ != request.request_id()) return;
  if (!random_.OneIn(options_.calls_per_loss)) {
    const core::CallId call{next_call_++};
    calls_[call] = request;
    After(NetworkDelay(), [this, call, request] { Deliver(core::SubmitRunCalled{call, request}); });
  }
  After(seconds(20), [this, request] { CallSubmit(request); });
}

void Simulation::OnAnswer(const core::AnswerCall& answer) {
  const auto call = calls_.find(answer.call);
  if (call == calls_.end()) {
    if (stop_calls_.contains(answer.call) && answer.status.ok()) stop_asked_ = true;
    return;
  }
  const v1::SubmitRunRequest request = call->second;
  calls_.erase(call);
  if (request.request_id() != waiting_for_) return;
  const bool runs_already = request.resume() && absl::IsAlreadyExists(answer.status);
  if (!answer.status.ok() && !runs_already) {
    trouble_ = absl::StrCat("the submission was refused: ", answer.status.ToString());
  }
  waiting_for_.clear();
}

void Simulation::Watch() {
  After(seconds(1), [this] { Watch(); });
  if (!coordinator_up_ || !waiting_for_.empty()) return;
  const absl::StatusOr<v1::RunStatus> status = core_->GetRun(kRun, now());
  if (!status.ok()) {
    trouble_ = status.status().ToString();
    return;
  }
  if (status->state() == v1::RUN_STATE_COMPLETED) {
    done_ = true;
    return;
  }
  if (options_.stop_at_step && !stop_asked_ && status->step().step() >= *options_.stop_at_step) {
    v1::StopRunRequest stop;
    stop.set_request_id("stop");
    stop.set_run_id(kRun);
    stop.set_reason("the user asked");
    stop_calls_.insert(core::CallId{next_call_});
    Deliver(core::StopRunCalled{core::CallId{next_call_++}, stop});
    return;
  }
  CheckProgress(*status);
  UndrainLater();
  if (status->state() != v1::RUN_STATE_STOPPED && status->state() != v1::RUN_STATE_FAILED) {
    return StartDeadAgents();
  }
  if (!status->retryable()) {
    trouble_ = absl::StrCat("failed for good: ", status->reason());
    return;
  }
  ++resumes_;
  Submit(/*resume=*/true);
}

void Simulation::KillAgent(int agent) { agents_[static_cast<std::size_t>(agent)]->Die(); }
void Simulation::KillMachineOf(std::int32_t rank) {
  for (const auto& agent : agents_) {
    if (agent->Hosts(rank)) return agent->Die(/*with_memory=*/true);
  }
}
void Simulation::KillWorker(int agent) { agents_[static_cast<std::size_t>(agent)]->WorkerDies(); }
void Simulation::BreakSession(int agent) {
  agents_[static_cast<std::size_t>(agent)]->LoseSession();
}
void Simulation::StartAgent(int agent, milliseconds later) {
  After(later, [to = agents_[static_cast<std::size_t>(agent)].get()] {
    if (!to->alive()) to->Start();
  });
}

void Simulation::Drain(const std::string& node) {
  if (!coordinator_up_) return;
  v1::DrainNodeRequest request;
  request.set_request_id(absl::StrCat("request-", next_request_++));
  request.set_node(node);
  request.set_reason("a fan is loud");
  Deliver(core::DrainNodeCalled{core::CallId{next_call_++}, request});
}

void Simulation::UndrainLater() {
  if (!coordinator_up_) return;
  for (const v1::NodeStatus& node : core_->ListNodes(now())) {
    const bool drained = node.state() == v1::NODE_STATE_DRAINED ||
                         node.state() == v1::NODE_STATE_DRAINING ||
                         node.state() == v1::NODE_STATE_QUARANTINED;
    if (!drained || !undraining_.insert(node.name()).second) continue;
    After(seconds(random_.Between(5, 90)), [this, name = node.name()] {
      undraining_.erase(name);
      if (!coordinator_up_) return;
      v1::UndrainNodeRequest request;
      request.set_request_id(absl::StrCat("request-", next_request_++));
      request.set_node(name);
      Deliver(core::UndrainNodeCalled{core::CallId{next_call_++}, request});
    });
  }
}

// A run that waits while all of its nodes could serve it has been forgotten.
void Simulation::CheckProgress(const v1::RunStatus& status) {
  constexpr std::int64_t kPatienceNs = 600'000'000'000;
  int usable = 0;
  for (const v1::NodeStatus& node : core_->ListNodes(now())) {
    const bool drained = node.state() == v1::NODE_STATE_DRAINED ||
                         node.state() == v1::NODE_STATE_DRAINING ||
                         node.state() == v1::NODE_STATE_QUARANTINED;
    if (node.alive() && !drained) ++usable;
  }
  if (status.state() != v1::RUN_STATE_WAITING || usable < options_.nodes) {
    stuck_since_ = -1;
  } else if (stuck_since_ < 0) {
    stuck_since_ = clock_;
  } else if (clock_ - stuck_since_ > kPatienceNs) {
    trouble_ = absl::StrCat("the run waits though ", usable, " nodes are there: ", status.reason());
  }
}

void Simulation::StartDeadAgents() {
  if (!options_.agents_come_back) return;
  for (const auto& agent : agents_) {
    if (agent->alive()) continue;
    After(milliseconds(random_.Between(10, 10'000)), [agent = agent.get()] {
      if (!agent->alive()) agent->Start();
    });
  }
}

// --- training, shared by the agents ---

Training& Simulation::TrainingOf(const v1::GenerationKey& key, int world, std::int64_t start_step) {
  std::shared_ptr<Training>& training = trainings_[key.generation()];
  if (training == nullptr) {
    training = std::make_shared<Training>();
    training->key = key;
    training->world = world;
    training->step = start_step;
  }
  return *training;
}

void Simulation::TryStep(const std::shared_ptr<Training>& training) {
  if (training->over || training->stepping || training->ranks_with_peers < training->world) return;
  // A generation that begins with the last step's state has its checkpoint to write.
  const std::int64_t until = std::min(training->step + 1, options_.steps);
  const bool granted =
      std::all_of(training->agents.begin(), training->agents.end(),
                  [until](const auto& entry) { return entry.second->granted_until() >= until; });
  if (!granted) return;
  training->stepping = true;
  After(options_.step_time, [this, training] { Step(training); });
}

void Simulation::Step(const std::shared_ptr<Training>& training) {
  training->stepping = false;
  if (training->over) return;
  const std::int64_t step = training->step = std::min(training->step + 1, options_.steps);
  StepEnd end;
  end.checkpoint = options_.checkpoint_interval > 0 && step % options_.checkpoint_interval == 0;
  const bool moves = training->moving_now || (training->moving && end.checkpoint);
  end.stopped = step < options_.steps && (training->stopping || moves);
  end.last = step == options_.steps || end.stopped;
  for (const auto& [index, agent] : training->agents) agent->OnStepped(step, end);
  training->over = end.last;
  if (options_.on_step && !end.last) options_.on_step(*this, step);
  const auto victim = [this] {
    const auto last = static_cast<std::int64_t>(agents_.size()) - 1;
    return agents_[static_cast<std::size_t>(random_.Between(0, last))].get();
  };
  if (random_.OneIn(options_.steps_per_drain)) {
    Drain(absl::StrCat("node-", random_.Between(0, static_cast<std::int64_t>(agents_.size()) - 1)));
  }
  const bool agent_dies = random_.OneIn(options_.steps_per_agent_death);
  if (agent_dies || random_.OneIn(options_.steps_per_worker_death)) {
    Agent* dead = victim();
    agent_dies ? dead->Die(random_.OneIn(options_.deaths_per_lost_machine)) : dead->WorkerDies();
    for (const auto& [index, agent] : training->agents) {
      if (agent == dead || !random_.OneIn(2)) continue;
      After(milliseconds(random_.Between(0, 500)), [agent = agent] { agent->OnPeerLost(); });
    }
  }
  TryStep(training);
}

void Simulation::Halt(Training& training) { training.over = true; }

}  // namespace paceline::sim
