#include "coordinator/core/state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/runs.h"

namespace paceline::core {
namespace {

absl::Status DoesNotFollow(const v1::Fact& fact, const std::string& why) {
  return absl::DataLossError(absl::StrCat("fact ", fact.index(), " does not follow: ", why,
                                          "; the journal is damaged or of another coordinator"));
}

template <typename T>
void PushBounded(std::vector<T>& items, T item, std::size_t limit) {
  if (items.size() >= limit) items.erase(items.begin());
  items.push_back(std::move(item));
}

absl::Status MoveTo(Run& run, v1::RunState next, const v1::Fact& fact) {
  if (!MayFollow(run.state, next)) {
    return DoesNotFollow(
        fact, absl::StrCat("run ", run.id(), " cannot go from ", v1::RunState_Name(run.state),
                           " to ", v1::RunState_Name(next)));
  }
  run.state = next;
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::EpochOpened& opened) {
  if (opened.epoch() <= state.epoch.value()) {
    return DoesNotFollow(
        fact, absl::StrCat("epoch ", opened.epoch(), " after epoch ", state.epoch.value()));
  }
  state.epoch = Epoch{opened.epoch()};
  return absl::OkStatus();
}

void ForgetDeadNodeWhenFull(State& state) {
  if (state.nodes.size() < kMaxNodes) return;
  for (auto it = state.nodes.begin(); it != state.nodes.end(); ++it) {
    if (it->second.alive) continue;
    state.node_by_name.erase(it->second.info.name());
    state.nodes.erase(it);
    return;
  }
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::NodeJoined& joined) {
  const NodeId id{joined.node_id()};
  const auto known = state.node_by_name.find(joined.node().name());
  if (known == state.node_by_name.end()) {
    if (id.value() != state.next_node_id) {
      return DoesNotFollow(
          fact, absl::StrCat("new node has id ", id.value(), ", next is ", state.next_node_id));
    }
    ForgetDeadNodeWhenFull(state);
    ++state.next_node_id;
    state.node_by_name[joined.node().name()] = id;
  } else if (known->second != id || state.nodes.at(id).alive) {
    return DoesNotFollow(fact, absl::StrCat("node ", joined.node().name(), " has joined already"));
  }
  Node& node = state.nodes[id];
  node.id = id;
  node.info = joined.node();
  node.alive = true;
  node.charged_until_ms = fact.at_ms();
  node.joined_index = fact.index();
  state.SetPayer(node, state.PayerAtRest(node));
  return absl::OkStatus();
}

void CountNodeFailure(Node& node, const v1::Fact& fact) {
  PushBounded(node.failures_ms, fact.at_ms(), kMaxFailures);
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::NodeLeft& left) {
  const auto it = state.nodes.find(NodeId{left.node_id()});
  if (it == state.nodes.end() || !it->second.alive ||
      it->second.info.incarnation() != left.incarnation()) {
    return DoesNotFollow(fact, absl::StrCat("node ", left.node_id(), " is not there"));
  }
  it->second.alive = false;
  state.SetPayer(it->second, "");
  if (left.failed()) CountNodeFailure(it->second, fact);
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::NodeFailed& failed) {
  const auto it = state.nodes.find(NodeId{failed.node_id()});
  if (it == state.nodes.end()) {
    return DoesNotFollow(fact, absl::StrCat("node ", failed.node_id(), " is unknown"));
  }
  CountNodeFailure(it->second, fact);
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::NodeDrained& drained) {
  const auto it = state.nodes.find(NodeId{drained.node_id()});
  if (it == state.nodes.end() || it->second.drained) {
    return DoesNotFollow(fact, absl::StrCat("node ", drained.node_id(), " cannot be drained"));
  }
  Node& node = it->second;
  node.drained = true;
  node.quarantined = drained.quarantined();
  node.drain_reason = drained.reason();
  if (!drained.request_id().empty()) {
    PushBounded(node.request_ids, drained.request_id(), kMaxNodeRequestIds);
  }
  // The node was to blame, and not the run.
  const auto run = state.runs.find(drained.run_id());
  if (drained.quarantined() && run != state.runs.end()) run->second.in_vain = 0;
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::NodeUndrained& undrained) {
  const auto it = state.nodes.find(NodeId{undrained.node_id()});
  if (it == state.nodes.end() || !it->second.drained) {
    return DoesNotFollow(fact, absl::StrCat("node ", undrained.node_id(), " is not drained"));
  }
  Node& node = it->second;
  node.drained = node.quarantined = false;
  node.drain_reason.clear();
  node.failures_ms.clear();
  if (!undrained.request_id().empty()) {
    PushBounded(node.request_ids, undrained.request_id(), kMaxNodeRequestIds);
  }
  return absl::OkStatus();
}

void ForgetEndedRunWhenFull(State& state) {
  if (state.runs.size() < kMaxRuns) return;
  auto oldest = state.runs.end();
  for (auto it = state.runs.begin(); it != state.runs.end(); ++it) {
    if (!it->second.ended()) continue;
    if (oldest == state.runs.end() || it->second.ended_epoch < oldest->second.ended_epoch) {
      oldest = it;
    }
  }
  if (oldest != state.runs.end()) state.runs.erase(oldest);
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::RunSubmitted& submitted) {
  const v1::SubmitRunRequest& request = submitted.request();
  const auto known = state.runs.find(request.run_id());
  if (known != state.runs.end() && known->second.generation_open) {
    return DoesNotFollow(fact, absl::StrCat("run ", request.run_id(), " is running"));
  }
  absl::StatusOr<RunFile> file =
      ParseRunFile(request.run_file(), absl::StrCat(request.run_id(), "/run.toml"), "/", {});
  if (!file.ok()) return DoesNotFollow(fact, std::string(file.status().message()));
  if (known == state.runs.end()) ForgetEndedRunWhenFull(state);
  Run& run = state.runs[request.run_id()];
  run.request = request;
  run.file = *std::move(file);
  run.state = v1::RUN_STATE_WAITING;
  run.reason.clear();
  run.stop_reason.clear();
  run.failure.Clear();
  run.retryable = false;
  run.restarts = run.in_vain = 0;
  run.first_generation = Generation{run.generation.value() + 1};
  run.tokens = run.CommittedTokens();
  run.phases.Enter(v1::RUN_PHASE_WAITING, fact.at_ms());
  PushBounded(run.request_ids, request.request_id(), kMaxRequestIds);
  for (auto& [id, node] : state.nodes) {
    if (node.alive && node.payer.empty() && node.info.run_id() == run.id()) {
      state.SetPayer(node, run.id());
    }
  }
  return absl::OkStatus();
}

Run* FindRun(State& state, const std::string& run_id) {
  const auto it = state.runs.find(run_id);
  return it == state.runs.end() ? nullptr : &it->second;
}

// The run whose open generation is `key`; nullptr when it is another's time.
Run* FindOpen(State& state, const v1::GenerationKey& key) {
  Run* run = FindRun(state, key.run_id());
  const bool open =
      run != nullptr && run->generation_open && run->generation.value() == key.generation();
  return open ? run : nullptr;
}

std::string NotOpen(const v1::GenerationKey& key) {
  return absl::StrCat("generation ", key.generation(), " of run ", key.run_id(), " is not open");
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::GenerationStarted& started) {
  Run* run = FindRun(state, started.key().run_id());
  if (run == nullptr || run->generation_open ||
      started.key().generation() != run->generation.value() + 1 ||
      started.start_step() != run->GrantedUntil() ||
      (!started.live() && started.start_step() != run->CommittedStep())) {
    return DoesNotFollow(fact, absl::StrCat("generation ", started.key().generation(), " of run ",
                                            started.key().run_id(), " cannot begin now"));
  }
  for (const v1::RankPlacement& placement : started.placements()) {
    const Node* node = state.FindNode(NodeId{placement.node_id()});
    if (node == nullptr || !node->alive || (!node->payer.empty() && node->payer != run->id())) {
      return DoesNotFollow(fact, absl::StrCat("node ", placement.node_id(), " is not free"));
    }
  }
  RETURN_IF_ERROR(MoveTo(*run, v1::RUN_STATE_STARTING, fact));
  for (const v1::RankPlacement& placement : started.placements()) {
    state.SetPayer(state.nodes.at(NodeId{placement.node_id()}), run->id());
  }
  run->generation = Generation{started.key().generation()};
  run->generation_open = true;
  if (started.start_step() > run->plan.start_step()) run->in_vain = 0;
  run->plan = started;
  run->plan_index = fact.index();
  run->move_reason.clear();
  run->move_at_checkpoint = false;
  if (run->phases.phase() == v1::RUN_PHASE_WAITING) {
    run->phases.Enter(v1::RUN_PHASE_STARTING, fact.at_ms());
  }
  if (run->generation > run->first_generation && run->failure.has_key()) ++run->recoveries;
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::FirstStepDone& done) {
  Run* run = FindOpen(state, done.key());
  if (run == nullptr) return DoesNotFollow(fact, NotOpen(done.key()));
  run->phases.Enter(v1::RUN_PHASE_TRAINING, fact.at_ms());
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::MoveRequested& move) {
  Run* run = FindOpen(state, move.key());
  if (run == nullptr) return DoesNotFollow(fact, NotOpen(move.key()));
  run->move_reason = move.reason();
  run->move_at_checkpoint = move.at_checkpoint();
  return absl::OkStatus();
}

// The node on which a worker died or stood still. A lost node's NodeLeft counts for itself, and who
// lost a peer is not to blame.
void CountNodeFailure(State& state, const Run& run, const v1::Fact& fact) {
  const v1::FailureCause cause = run.failure.cause();
  if (cause != v1::FAILURE_CAUSE_WORKER_EXIT && cause != v1::FAILURE_CAUSE_STALL &&
      cause != v1::FAILURE_CAUSE_CORRUPT_STATE) {
    return;
  }
  const std::int32_t rank = run.failure.rank();
  if (rank < 0 || rank >= run.plan.placements_size()) return;
  const auto node = state.nodes.find(NodeId{run.plan.placements(rank).node_id()});
  if (node != state.nodes.end()) CountNodeFailure(node->second, fact);
}

// A lost node is no fault of the run's: that neither uses up its restarts nor makes a crash loop.
// Neither does a damaged checkpoint, which is not begun with again.
void CountFailure(Run& run) {
  run.highest_step = std::max(run.highest_step, run.last_step);
  if (!run.failure.has_key() || run.failure.cause() == v1::FAILURE_CAUSE_NODE_LOST ||
      run.failure.cause() == v1::FAILURE_CAUSE_CHECKPOINT) {
    return;
  }
  ++run.restarts;
  ++run.in_vain;
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::GenerationEnded& ended) {
  Run* run = FindOpen(state, ended.key());
  if (run == nullptr) return DoesNotFollow(fact, NotOpen(ended.key()));
  RETURN_IF_ERROR(MoveTo(*run, v1::RUN_STATE_WAITING, fact));
  run->generation_open = false;
  run->reason = ended.reason();
  run->failure = ended.failure();
  run->last_step = ended.last_step();
  if (ended.has_failure()) {
    run->phases.Enter(v1::RUN_PHASE_RECOVERING, fact.at_ms());
  } else if (!run->move_reason.empty()) {
    run->phases.Enter(v1::RUN_PHASE_RESIZING, fact.at_ms());
  }
  CountFailure(*run);
  if (run->failure.has_key()) CountNodeFailure(state, *run, fact);
  if (ended.has_step()) run->step = ended.step();
  if (ended.has_eval()) run->eval = ended.eval();
  for (const v1::RankPlacement& placement : run->plan.placements()) {
    const auto node = state.nodes.find(NodeId{placement.node_id()});
    if (node == state.nodes.end() || node->second.payer != run->id()) continue;
    state.SetPayer(node->second, state.PayerAtRest(node->second));
  }
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::WindowGranted& granted) {
  Run* run = FindOpen(state, granted.key());
  if (run == nullptr) return DoesNotFollow(fact, NotOpen(granted.key()));
  const v1::Window& window = granted.window();
  if (window.first_step() != run->GrantedUntil() || window.end_step() <= window.first_step()) {
    return DoesNotFollow(fact,
                         absl::StrCat("window [", window.first_step(), ", ", window.end_step(),
                                      ") after step ", run->GrantedUntil()));
  }
  run->windows.push_back(window);
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::WindowsRolledBack& back) {
  Run* run = FindRun(state, back.key().run_id());
  const v1::Window& window = back.window();
  if (run == nullptr || window.first_step() < run->CommittedStep() ||
      window.first_step() >= window.end_step() || window.end_step() != run->GrantedUntil()) {
    return DoesNotFollow(
        fact, absl::StrCat("windows [", window.first_step(), ", ", window.end_step(), ") of run ",
                           back.key().run_id(), " are not the last that stand uncommitted"));
  }
  const std::int64_t left_until = window.first_step();
  std::erase_if(run->windows,
                [left_until](const v1::Window& w) { return w.first_step() >= left_until; });
  if (!run->windows.empty() && run->windows.back().end_step() > left_until) {
    run->windows.back().set_end_step(left_until);
  }
  run->lost_steps += back.lost_steps();
  run->lost_tokens += back.lost_tokens();
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::CheckpointCommittedFact& commit) {
  Run* run = FindOpen(state, commit.key());
  if (run == nullptr) return DoesNotFollow(fact, NotOpen(commit.key()));
  const std::int64_t step = commit.position().step();
  if (step <= run->CommittedStep() || step > run->GrantedUntil()) {
    return DoesNotFollow(fact, absl::StrCat("checkpoint of step ", step, " lies outside (",
                                            run->CommittedStep(), ", ", run->GrantedUntil(), "]"));
  }
  run->checkpoints.push_back({.position = commit.position(),
                              .folder = commit.folder(),
                              .manifest_digest = commit.manifest_digest(),
                              .ledger_digest = commit.ledger_digest(),
                              .generation = run->generation,
                              .tokens = commit.tokens()});
  run->ledger_digest = commit.ledger_digest();
  run->in_vain = 0;
  // Older journals tell no first step.
  if (step > run->plan.start_step()) run->phases.Enter(v1::RUN_PHASE_TRAINING, fact.at_ms());
  run->tokens = commit.tokens();
  std::erase_if(run->windows, [step](const v1::Window& w) { return w.end_step() <= step; });
  if (!run->windows.empty()) {
    v1::Window& first = run->windows.front();
    first.set_first_step(std::max(first.first_step(), step));
  }
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::CheckpointDiscarded& discarded) {
  Run* run = FindRun(state, discarded.run_id());
  if (run == nullptr) {
    return DoesNotFollow(fact, absl::StrCat("run ", discarded.run_id(), " is unknown"));
  }
  PushBounded(run->discarded, discarded, kMaxDiscarded);
  const auto found =
      std::find_if(run->checkpoints.begin(), run->checkpoints.end(),
                   [&discarded](const Checkpoint& c) { return c.folder == discarded.folder(); });
  if (found == run->checkpoints.end()) return absl::OkStatus();
  const bool latest = found + 1 == run->checkpoints.end();
  run->checkpoints.erase(found);
  if (!latest) return absl::OkStatus();
  // The lineage now ends earlier: the windows in between are uncommitted again.
  v1::Window uncommitted;
  uncommitted.set_first_step(run->CommittedStep());
  uncommitted.set_end_step(discarded.step());
  run->windows.insert(run->windows.begin(), uncommitted);
  run->ledger_digest = run->checkpoints.empty() ? "" : run->checkpoints.back().ledger_digest;
  run->tokens = run->CommittedTokens();
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::RunStopRequested& stop) {
  Run* run = FindRun(state, stop.run_id());
  if (run == nullptr || run->ended()) {
    return DoesNotFollow(fact, absl::StrCat("run ", stop.run_id(), " is not active"));
  }
  if (run->generation_open) RETURN_IF_ERROR(MoveTo(*run, v1::RUN_STATE_STOPPING, fact));
  run->stop_reason = stop.reason();
  PushBounded(run->request_ids, stop.request_id(), kMaxRequestIds);
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::RunEnded& ended) {
  Run* run = FindRun(state, ended.run_id());
  if (run == nullptr || run->generation_open) {
    return DoesNotFollow(fact, absl::StrCat("run ", ended.run_id(), " cannot end now"));
  }
  RETURN_IF_ERROR(MoveTo(*run, ended.state(), fact));
  run->reason = ended.reason();
  run->tokens = ended.tokens();
  run->retryable = ended.retryable();
  run->ended_epoch = state.epoch;
  run->phases.Enter(v1::RUN_PHASE_UNSPECIFIED, fact.at_ms());
  for (const NodeId id : std::set<NodeId>(run->nodes)) state.SetPayer(state.nodes.at(id), "");
  return absl::OkStatus();
}

absl::Status Apply(State& state, const v1::Fact& fact, const v1::ChargePosted& charge) {
  const auto it = state.nodes.find(NodeId{charge.node_id()});
  if (it == state.nodes.end() || !it->second.alive ||
      it->second.info.incarnation() != charge.incarnation() ||
      it->second.charged_until_ms != charge.from_ms() || charge.to_ms() < charge.from_ms()) {
    return DoesNotFollow(
        fact, absl::StrCat("a charge of node ", charge.node_id(), " leaves a gap or overlaps"));
  }
  it->second.charged_until_ms = charge.to_ms();
  if (Run* run = FindRun(state, charge.run_id()); run != nullptr) run->cost += charge.amount();
  return absl::OkStatus();
}

absl::Status ApplyBody(State& state, const v1::Fact& fact) {
  switch (fact.body_case()) {
    case v1::Fact::kEpochOpened:
      return Apply(state, fact, fact.epoch_opened());
    case v1::Fact::kNodeJoined:
      return Apply(state, fact, fact.node_joined());
    case v1::Fact::kNodeLeft:
      return Apply(state, fact, fact.node_left());
    case v1::Fact::kRunSubmitted:
      return Apply(state, fact, fact.run_submitted());
    case v1::Fact::kGenerationStarted:
      return Apply(state, fact, fact.generation_started());
    case v1::Fact::kGenerationEnded:
      return Apply(state, fact, fact.generation_ended());
    case v1::Fact::kWindowGranted:
      return Apply(state, fact, fact.window_granted());
    case v1::Fact::kWindowsRolledBack:
      return Apply(state, fact, fact.windows_rolled_back());
    case v1::Fact::kCheckpointCommitted:
      return Apply(state, fact, fact.checkpoint_committed());
    case v1::Fact::kCheckpointDiscarded:
      return Apply(state, fact, fact.checkpoint_discarded());
    case v1::Fact::kRunStopRequested:
      return Apply(state, fact, fact.run_stop_requested());
    case v1::Fact::kRunEnded:
      return Apply(state, fact, fact.run_ended());
    case v1::Fact::kChargePosted:
      return Apply(state, fact, fact.charge_posted());
    case v1::Fact::kNodeDrained:
      return Apply(state, fact, fact.node_drained());
    case v1::Fact::kNodeUndrained:
      return Apply(state, fact, fact.node_undrained());
    case v1::Fact::kNodeFailed:
      return Apply(state, fact, fact.node_failed());
    case v1::Fact::kMoveRequested:
      return Apply(state, fact, fact.move_requested());
    case v1::Fact::kFirstStepDone:
      return Apply(state, fact, fact.first_step_done());
    case v1::Fact::BODY_NOT_SET:
      break;
  }
  return DoesNotFollow(fact, "its kind is unknown");
}

}  // namespace

bool Node::HasRequest(const std::string& request_id) const {
  return !request_id.empty() &&
         std::find(request_ids.begin(), request_ids.end(), request_id) != request_ids.end();
}

int Node::FailuresSince(std::int64_t since_ms) const {
  return static_cast<int>(std::count_if(failures_ms.begin(), failures_ms.end(),
                                        [since_ms](std::int64_t at) { return at >= since_ms; }));
}

bool Run::ended() const {
  return state == v1::RUN_STATE_COMPLETED || state == v1::RUN_STATE_STOPPED ||
         state == v1::RUN_STATE_FAILED;
}

bool Run::HasRequest(const std::string& request_id) const {
  return !request_id.empty() &&
         std::find(request_ids.begin(), request_ids.end(), request_id) != request_ids.end();
}

bool Run::WasDiscarded(std::int64_t step) const {
  const std::string folder = CheckpointFolder(*this, step);
  return std::any_of(discarded.begin(), discarded.end(),
                     [&folder](const v1::CheckpointDiscarded& d) { return d.folder() == folder; });
}

bool Run::HasCommitted(const std::string& folder) const {
  return std::any_of(checkpoints.begin(), checkpoints.end(),
                     [&folder](const Checkpoint& c) { return c.folder == folder; });
}

v1::GenerationKey Run::key() const {
  v1::GenerationKey key;
  key.set_run_id(id());
  key.set_generation(generation.value());
  return key;
}

std::int64_t Run::CommittedStep() const {
  return checkpoints.empty() ? 0 : checkpoints.back().position.step();
}

std::int64_t Run::CommittedTokens() const {
  return checkpoints.empty() ? 0 : checkpoints.back().tokens;
}

std::int64_t Run::GrantedUntil() const {
  return windows.empty() ? CommittedStep() : windows.back().end_step();
}

std::int64_t Run::TokensPerStep() const {
  return file.train.global_batch_size * file.train.sequence_length;
}

absl::Status State::Evolve(const v1::Fact& fact) {
  if (fact.index() != index + 1) {
    return DoesNotFollow(fact, absl::StrCat("the last was ", index));
  }
  if (fact.at_ms() < at_ms) {
    return DoesNotFollow(fact, absl::StrCat("its time ", fact.at_ms(), " lies before ", at_ms));
  }
  RETURN_IF_ERROR(ApplyBody(*this, fact));
  index = fact.index();
  at_ms = fact.at_ms();
  return absl::OkStatus();
}

std::string State::PayerAtRest(const Node& node) const {
  const Run* run = FindRun(node.info.run_id());
  return run != nullptr && !run->ended() ? run->id() : std::string();
}

void State::SetPayer(Node& node, const std::string& run_id) {
  if (auto old = runs.find(node.payer); old != runs.end()) old->second.nodes.erase(node.id);
  node.payer = run_id;
  if (auto run = runs.find(run_id); run != runs.end()) run->second.nodes.insert(node.id);
}

const Run* State::FindRun(const std::string& run_id) const {
  const auto it = runs.find(run_id);
  return it == runs.end() ? nullptr : &it->second;
}

const Node* State::FindNode(NodeId id) const {
  const auto it = nodes.find(id);
  return it == nodes.end() ? nullptr : &it->second;
}

}  // namespace paceline::core
