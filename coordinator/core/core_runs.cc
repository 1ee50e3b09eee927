// The life of runs inside Core: submission, planning, a generation's beginning and end, and what
// follows it.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint_name.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/limits.h"
#include "coordinator/core/runs.h"
#include "coordinator/core/shards.h"

namespace paceline::core {
namespace {

std::string Seconds(std::chrono::milliseconds limit) {
  return absl::StrCat(std::chrono::duration<double>(limit).count(), " s");
}

// A resume names what it changes; the rest stays as it was.
v1::SubmitRunRequest FilledFrom(const Run& run, v1::SubmitRunRequest request) {
  if (request.run_file().empty()) request.set_run_file(run.request.run_file());
  if (request.run_dir().empty()) request.set_run_dir(run.request.run_dir());
  if (request.corpus_digest().empty()) {
    request.set_corpus_digest(run.request.corpus_digest());
    request.set_corpus_samples(run.request.corpus_samples());
  }
  return request;
}

// Runs whose last ranks' progress is kept for questions.
constexpr std::size_t kMaxRanksRemembered = 64;

bool Holds(const std::vector<v1::CheckpointDiscarded>& discarded, const std::string& folder) {
  return std::any_of(discarded.begin(), discarded.end(),
                     [&folder](const auto& d) { return d.folder() == folder; });
}

}  // namespace

void Core::Impl::Submit(CallId call, v1::SubmitRunRequest request) {
  const Run* run = state_.FindRun(request.run_id());
  if (run != nullptr && run->HasRequest(request.request_id())) {
    return Answer(call, absl::OkStatus(), run->id());  // the first answer was lost
  }
  if (run == nullptr && request.resume()) {
    return Answer(call, absl::NotFoundError(absl::StrCat(
                            "run \"", Cut(request.run_id(), kMaxNameBytes),
                            "\" is unknown to this coordinator, so there is nothing to resume")));
  }
  if (run != nullptr && !request.resume()) {
    return Answer(call, absl::AlreadyExistsError(absl::StrCat(
                            "run ", run->id(), " exists; resume it, or choose another run id")));
  }
  if (run != nullptr) request = FilledFrom(*run, std::move(request));
  const absl::StatusOr<RunFile> file = CheckSubmission(request);
  if (!file.ok()) return Answer(call, file.status());
  for (const auto& [id, other] : state_.runs) {
    if (id == request.run_id() || CheckpointDir(other) != CheckpointDir(*file, request)) continue;
    return Answer(call, absl::InvalidArgumentError(absl::StrCat(
                            "[checkpoint] dir = \"", file->checkpoint.dir, "\" is that of run ", id,
                            ", which removes what it does not know there; give another folder")));
  }
  if (run != nullptr && run->generation_open) {
    const GenerationRuntime& generation = generations_.at(run->id());
    const bool heard = std::any_of(
        generation.ranks_of.begin(), generation.ranks_of.end(), [this](const auto& entry) {
          return nodes_.contains(entry.first) && nodes_.at(entry.first).session.has_value();
        });
    if (heard) {
      return Answer(call, absl::AlreadyExistsError(absl::StrCat(
                              "run ", run->id(), " is running; there is nothing to resume")));
    }
    if (deferred_.size() >= kMaxWaitingCalls) {
      return Answer(call, absl::ResourceExhaustedError("too many calls wait; try again later"));
    }
    deferred_.emplace_back(call, std::move(request));
    return;
  }
  if (run != nullptr) {
    if (absl::Status fits = CheckTakesUp(*run, *file, request); !fits.ok()) {
      return Answer(call, std::move(fits));
    }
  } else if (state_.runs.size() >= kMaxRuns &&
             std::none_of(state_.runs.begin(), state_.runs.end(),
                          [](const auto& entry) { return entry.second.ended(); })) {
    return Answer(call, absl::ResourceExhaustedError(
                            absl::StrCat("this coordinator serves ", kMaxRuns, " runs already")));
  }
  const std::string run_id = request.run_id();
  for (const auto& [id, runtime] : nodes_) {
    if (state_.nodes.at(id).info.run_id() == run_id) Charge(id);  // from now on the run pays
  }
  v1::Fact fact;
  *fact.mutable_run_submitted()->mutable_request() = std::move(request);
  const bool known = run != nullptr;
  Emit(std::move(fact));
  waiting_since_.erase(run_id);
  recoveries_.erase(run_id);
  DiscardDamaged(state_.runs.at(run_id));
  if (known) Sweep(state_.runs.at(run_id));
  Answer(call, absl::OkStatus(), run_id);
  TryPlan(state_.runs.at(run_id));
}

void Core::Impl::DiscardDamaged(const Run& run) {
  for (const v1::DamagedCheckpoint& damaged : run.request.damaged_checkpoints()) {
    const auto found = std::find_if(
        run.checkpoints.begin(), run.checkpoints.end(),
        [&damaged](const Checkpoint& checkpoint) { return checkpoint.folder == damaged.folder(); });
    if (found == run.checkpoints.end()) continue;
    Discard(run, found->position.step(), damaged.folder(),
            absl::StrCat("found damaged: ", Cut(damaged.reason(), kMaxErrorBytes)),
            /*damaged=*/true);
  }
  if (run.request.damaged_checkpoints_size() > 0) RollBackTo(run, run.CommittedStep());
}

void Core::Impl::RollBackTo(const Run& run, std::int64_t step) {
  // What was committed and turned out damaged is lost as well.
  const std::int64_t last_step = std::max(run.last_step, run.plan.start_step());
  v1::Fact back;
  if (RollBack(run, step, last_step, back.mutable_windows_rolled_back())) Emit(std::move(back));
}

void Core::Impl::Sweep(const Run& run) {
  if (run.generation.value() == 0) return;  // nothing was ever written
  // The ranks of an open generation may still be writing.
  const std::uint64_t last = run.generation.value() - (run.generation_open ? 1 : 0);
  SweepCheckpoints sweep{CheckpointDir(run), last, {}};
  for (const Checkpoint& checkpoint : run.checkpoints) sweep.known.push_back(checkpoint.folder);
  decision_.effects.push_back(std::move(sweep));
}

void Core::Impl::RetryDeferred() {
  if (!std::exchange(retry_deferred_, false)) return;
  for (auto& [call, request] : std::exchange(deferred_, {})) Submit(call, std::move(request));
}

void Core::Impl::AddRuntime(const Run& run) {
  GenerationRuntime generation;
  generation.key = run.key();
  generation.limits = TimeoutsFor(run.file.failure);
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    const NodeId node{placement.node_id()};
    generation.ranks.push_back({.node = node, .slot = placement.slot()});
    generation.ranks.back().progress.set_rank(placement.rank());
    generation.ranks_of[node].push_back(placement.rank());
  }
  for (const Buddy& buddy : BuddiesOf(run.plan)) generation.copies[buddy.buddy].push_back(buddy);
  generation.last_step = run.plan.start_step();
  generation.startup_deadline = now_.steady + generation.limits.startup;
  generations_.insert_or_assign(run.id(), std::move(generation));
  UpdateDeadline(run.id());
}

void Core::Impl::SendStart(const Run& run, NodeId node) {
  const GenerationRuntime& generation = generations_.at(run.id());
  v1::CoordinatorMessage message;
  v1::StartGeneration& start = *message.mutable_start();
  *start.mutable_key() = generation.key;
  *start.mutable_layout() = run.plan.layout();
  for (const std::int32_t rank : generation.ranks_of.at(node)) {
    v1::RankAssignment& assignment = *start.add_assignments();
    assignment.set_rank(rank);
    assignment.set_slot(generation.ranks[static_cast<std::size_t>(rank)].slot);
  }
  start.set_run_file(run.request.run_file());
  start.set_run_dir(run.request.run_dir());
  start.set_checkpoint(run.plan.checkpoint());
  start.set_start_step(run.plan.start_step());
  start.set_start_tokens(run.plan.start_tokens());
  start.mutable_windows()->Add(run.windows.begin(), run.windows.end());
  start.set_corpus_digest(run.request.corpus_digest());
  start.set_live(run.plan.live());
  *start.mutable_transfers() = run.plan.transfers();
  AddSnapshots(run, node, start);
  Send(node, std::move(message));
}

void Core::Impl::GrantWindows(GenerationRuntime& generation, std::int64_t until_step) {
  const Run& run = RunOf(generation);
  for (const v1::Window& window :
       WindowsToGrant(run, generation.last_step, generation.step_seconds, until_step)) {
    v1::Fact fact;
    *fact.mutable_window_granted()->mutable_key() = generation.key;
    *fact.mutable_window_granted()->mutable_window() = window;
    Emit(std::move(fact));
  }
}

v1::RankFailed Core::Impl::FailureOf(const GenerationRuntime& generation, std::int32_t rank,
                                     v1::FailureCause cause, absl::StatusCode code,
                                     const std::string& error) const {
  v1::RankFailed failure;
  *failure.mutable_key() = generation.key;
  failure.set_rank(rank);
  failure.set_cause(cause);
  failure.set_status_code(static_cast<std::int32_t>(code));
  failure.set_error(error);
  failure.set_exit_code(-1);
  return failure;
}

void Core::Impl::FailGeneration(GenerationRuntime& generation, const v1::RankFailed& failure) {
  if (generation.finished == generation.ranks.size() &&
      RunOf(generation).CommittedStep() == generation.final_step) {
    // Everything was done and is safe; only the farewell failed.
    return EndGeneration(generation.key.run_id(), "all ranks had finished", {});
  }
  EndGeneration(generation.key.run_id(), Describe(failure, NodeNameOf(generation, failure.rank())),
                failure);
}

void Core::Impl::EndGeneration(std::string run_id, const std::string& reason,
                               const v1::RankFailed& failure) {
  const Run& run = state_.runs.at(run_id);
  GenerationRuntime& open = generations_.at(run_id);
  ChargeAll(run.nodes);
  while (!open.checkpoints.empty()) {
    DiscardInFlight(open, open.checkpoints.begin()->first, "its generation ended");
  }
  // A recovery that was not told, because nobody said when it had its first step, is over all the
  // same.
  if (run.phases.phase() == v1::RUN_PHASE_TRAINING) recoveries_.erase(run_id);
  v1::Fact fact;
  v1::GenerationEnded& ended = *fact.mutable_generation_ended();
  *ended.mutable_key() = open.key;
  ended.set_reason(reason);
  ended.set_last_step(open.last_step);
  if (failure.has_key()) *ended.mutable_failure() = failure;
  if (open.step) *ended.mutable_step() = *open.step;
  if (open.eval) *ended.mutable_eval() = *open.eval;
  Emit(std::move(fact));
  GenerationRuntime generation = std::move(open);
  generations_.erase(run_id);
  if (!failure.has_key()) {
    recoveries_.erase(run_id);
  } else {
    const std::int64_t ended_ms = state_.at_ms;
    const std::int64_t well_ms = generation.trouble_ms > 0 ? generation.trouble_ms : ended_ms;
    const RecoveryClock clock = {generation.key.generation(), well_ms, ended_ms, ended_ms};
    recoveries_.try_emplace(run_id, clock).first->second.ready_ms = 0;
  }
  ForgetLater(generation);
  Distrust(run, generation, failure);
  RememberRanks(generation);
  retry_deferred_ = true;
  run_deadlines_.Clear(run_id);
  for (const auto& [node, ranks] : generation.ranks_of) {
    if (nodes_.contains(node)) Drain(node, generation.key, reason);
  }
  AfterGeneration(run_id);
}

void Core::Impl::OnLeft(const v1::GenerationKey& key) {
  const auto recovery = recoveries_.find(key.run_id());
  if (recovery != recoveries_.end() && recovery->second.generation == key.generation()) {
    recovery->second.left_ms = WallMs(now_);
  }
}

void Core::Impl::RememberRanks(const GenerationRuntime& generation) {
  std::vector<v1::RankProgress>& ranks = last_ranks_[generation.key.run_id()];
  ranks.clear();
  for (const RankRuntime& rank : generation.ranks) ranks.push_back(rank.progress);
  for (auto it = last_ranks_.begin(); last_ranks_.size() > kMaxRanksRemembered;) {
    it = it->first == generation.key.run_id() ? std::next(it) : last_ranks_.erase(it);
  }
}

void Core::Impl::AfterGeneration(const std::string& run_id) {
  const Run& run = state_.runs.at(run_id);
  QuarantineAfter(run);
  if (MayBeCorrupt(run)) RollBackTo(run, run.CommittedStep());
  const std::string damaged = run.failure.damaged_checkpoint();
  if (!damaged.empty() && !run.checkpoints.empty() && run.checkpoints.back().folder == damaged) {
    Discard(run, run.CommittedStep(), damaged, absl::StrCat("found damaged: ", run.reason),
            /*damaged=*/true);
  }
  if (run.failure.has_key()) {
    if (!run.stop_reason.empty()) {
      return EndRun(run, v1::RUN_STATE_STOPPED,
                    absl::StrCat(run.stop_reason, "; without a last checkpoint: ", run.reason),
                    true);
    }
    if (!damaged.empty() && Holds(run.discarded, damaged)) {
      if (!run.checkpoints.empty()) return TryPlan(run);  // with the one before it
      return EndRun(run, v1::RUN_STATE_FAILED,
                    absl::StrCat(run.reason, " (it was the last one, and is kept as ", damaged,
                                 kSetAside, "; `paceline resume` begins at step 0)"),
                    false);
    }
    const std::string why_not = WhyNotAgain(run);
    if (why_not.empty()) return TryPlan(run);  // or when enough nodes are free
    return EndRun(run, v1::RUN_STATE_FAILED, absl::StrCat(run.reason, " (", why_not, ")"),
                  IsRetryable(run.failure));
  }
  if (run.CommittedStep() >= run.file.train.steps) {
    return EndRun(run, v1::RUN_STATE_COMPLETED, run.reason, false);
  }
  if (run.stop_reason.empty() && !run.move_reason.empty()) return TryPlan(run);
  EndRun(run, v1::RUN_STATE_STOPPED, run.stop_reason.empty() ? run.reason : run.stop_reason, true);
}

void Core::Impl::EndRun(const Run& run, v1::RunState state, const std::string& reason,
                        bool retryable) {
  const std::string run_id = run.id();
  ChargeAll(run.nodes);
  RollBackTo(run, run.CommittedStep());
  held_.erase(run_id);
  recoveries_.erase(run_id);
  distrusted_.erase(run_id);
  waiting_since_.erase(run_id);
  plan_deadlines_.Clear(run_id);
  v1::Fact fact;
  v1::RunEnded& ended = *fact.mutable_run_ended();
  ended.set_run_id(run_id);
  ended.set_state(state);
  ended.set_reason(reason);
  if (run.step.step() > 0) *ended.mutable_step() = run.step;
  if (run.eval.step() > 0) *ended.mutable_eval() = run.eval;
  ended.set_tokens(run.CommittedTokens());
  ended.set_retryable(retryable);
  Emit(std::move(fact));
  Sweep(run);
  decision_.effects.push_back(WriteSummary{run_id});
  for (auto& [id, runtime] : nodes_) {
    if (state_.nodes.at(id).info.run_id() != run_id) continue;
    v1::CoordinatorMessage release;
    release.mutable_release()->set_reason(absl::StrCat("run ", run_id, " has ended"));
    Send(id, std::move(release));
    runtime.released = true;
    UpdateFree(id);
  }
  // Nodes that serve others too go on without it.
  std::set<NodeId> told;
  for (const v1::RankPlacement& placement : run.plan.placements()) {
    const NodeId id{placement.node_id()};
    if (!nodes_.contains(id) || !told.insert(id).second) continue;
    if (state_.nodes.at(id).info.run_id() != run_id) SendForget(id, run.key());
  }
}

void Core::Impl::UpdateDeadline(const std::string& run_id) {
  const auto it = generations_.find(run_id);
  if (it == generations_.end()) return run_deadlines_.Clear(run_id);
  const GenerationRuntime& generation = it->second;
  SteadyTime next = SteadyTime::max();
  if (!generation.stepped) next = std::min(next, generation.startup_deadline);
  if (generation.failure) next = std::min(next, generation.failure_deadline);
  // Once all ranks have finished and the checkpoint is settled, only a heartbeat is missing, and
  // the lease guards that.
  const Run& run = RunOf(generation);
  if (generation.final_step >= 0 &&
      (generation.finished < generation.ranks.size() || !IsSettled(run, generation.final_step))) {
    next = std::min(next, generation.final_deadline);
  }
  for (const auto& [step, checkpoint] : generation.checkpoints) {
    next = std::min(next, checkpoint.deadline);
  }
  if (next == SteadyTime::max()) return run_deadlines_.Clear(run_id);
  run_deadlines_.Set(run_id, next);
}

void Core::Impl::OnRunDeadline(const std::string& run_id) {
  const auto it = generations_.find(run_id);
  if (it == generations_.end()) return run_deadlines_.Clear(run_id);
  GenerationRuntime& generation = it->second;
  if (generation.failure && generation.failure_deadline <= now_.steady) {
    return FailGeneration(generation, v1::RankFailed(*generation.failure));
  }
  if (!generation.stepped && generation.startup_deadline <= now_.steady) {
    const auto late = std::find_if(generation.ranks.begin(), generation.ranks.end(),
                                   [](const RankRuntime& rank) { return !rank.ready; });
    const bool all_ready = late == generation.ranks.end();
    const auto rank = static_cast<std::int32_t>(all_ready ? 0 : late - generation.ranks.begin());
    const std::string limit = Seconds(generation.limits.startup);
    const std::string what =
        all_ready ? absl::StrCat("completed no step within ", limit, " of its start; it was in \"",
                                 generation.ranks[0].progress.operation(), "\"")
                  : absl::StrCat("was not ready within ", limit);
    const std::string culprit =
        absl::StrCat("rank ", rank, " on ", NodeNameOf(generation, rank), " ", what);
    return EndGeneration(run_id, culprit,
                         FailureOf(generation, rank, v1::FAILURE_CAUSE_STALL,
                                   absl::StatusCode::kDeadlineExceeded, culprit));
  }
  std::vector<std::int64_t> late;
  for (const auto& [step, checkpoint] : generation.checkpoints) {
    if (checkpoint.deadline <= now_.steady) late.push_back(step);
  }
  for (const std::int64_t step : late) {
    const std::int32_t rank = FirstMissingRank(generation.checkpoints.at(step),
                                               static_cast<std::int32_t>(generation.ranks.size()));
    const std::string limit = Seconds(generation.limits.checkpoint);
    DiscardInFlight(generation, step,
                    rank < 0 ? absl::StrCat("its manifest was not written within ", limit)
                             : absl::StrCat("rank ", rank, " on ", NodeNameOf(generation, rank),
                                            " did not write its part within ", limit));
  }
  if (!late.empty()) WriteNextManifest(generation);
  UpdateDeadline(run_id);
  SettleFinal(generation);
}

}  // namespace paceline::core
