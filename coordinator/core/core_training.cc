// What ranks say while they train, inside Core: rendezvous, progress, windows, checkpoints,
// their end and their failures.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core_impl.h"
#include "coordinator/core/limits.h"
#include "coordinator/core/runs.h"
#include "coordinator/core/shards.h"

namespace paceline::core {
namespace {

constexpr std::size_t kMaxOperationBytes = 256;
// Weight of the newest step in the smoothed step time.
constexpr double kStepSmoothing = 0.2;

v1::CoordinatorMessage GrantOf(const v1::GenerationKey& key, const v1::Window& window) {
  v1::CoordinatorMessage message;
  *message.mutable_window_grant()->mutable_key() = key;
  *message.mutable_window_grant()->mutable_window() = window;
  return message;
}

// As a rank told it; 0: nothing that could be.
std::int64_t MillisecondsOf(double seconds) {
  return seconds > 0 && seconds < 1e7 ? static_cast<std::int64_t>(1e3 * seconds) : 0;
}

// Whether a generation whose ranks have come to `step` has had its first one, where one was left.
bool FirstStepIsDone(const Run& run, std::int64_t step) {
  return step > run.plan.start_step() || step == run.file.train.steps;
}

v1::CoordinatorMessage CommittedOf(const v1::GenerationKey& key, const Checkpoint& checkpoint) {
  v1::CoordinatorMessage message;
  *message.mutable_checkpoint_committed()->mutable_key() = key;
  message.mutable_checkpoint_committed()->set_step(checkpoint.position.step());
  message.mutable_checkpoint_committed()->set_folder(checkpoint.folder);
  return message;
}

}  // namespace

GenerationRuntime* Core::Impl::Current(NodeId node, const v1::GenerationKey& key,
                                       std::int32_t rank) {
  const auto it = generations_.find(key.run_id());
  if (it == generations_.end() || it->second.key.generation() != key.generation() ||
      !it->second.ranks_of.contains(node)) {
    Fence(node, key);
    return nullptr;
  }
  if (rank == -1) return &it->second;
  const auto index = static_cast<std::size_t>(rank);
  const bool on_node =
      rank >= 0 && index < it->second.ranks.size() && it->second.ranks[index].node == node;
  return on_node ? &it->second : nullptr;
}

std::string Core::Impl::NodeNameOf(const GenerationRuntime& generation, std::int32_t rank) const {
  const Node* node = state_.FindNode(generation.ranks[static_cast<std::size_t>(rank)].node);
  return node == nullptr ? "a node that has left" : node->info.name();
}

void Core::Impl::OnReady(NodeId node, const v1::RankReady& ready) {
  GenerationRuntime* generation = Current(node, ready.key(), ready.rank());
  if (generation == nullptr) return;
  if (ready.rank() < 0) return;
  // Gloo names a port for every peer.
  const std::size_t bytes_max =
      kMaxAddressBytes + kMaxAddressBytesPerPeer * generation->ranks.size();
  if (ready.address().size() > bytes_max) {
    return FailGeneration(*generation,
                          FailureOf(*generation, ready.rank(), v1::FAILURE_CAUSE_WORKER_ERROR,
                                    absl::StatusCode::kInvalidArgument,
                                    absl::StrCat("its address has ", ready.address().size(),
                                                 " bytes; at most ", bytes_max, " are taken")));
  }
  RankRuntime& rank = generation->ranks[static_cast<std::size_t>(ready.rank())];
  const bool repeat = rank.ready && rank.address == ready.address();
  if (!rank.ready) ++generation->ready;
  rank.ready = true;
  rank.address = ready.address();
  if (generation->ready < generation->ranks.size()) return;
  ForgetLater(*generation);
  if (!repeat) {
    const auto recovery = recoveries_.find(generation->key.run_id());
    if (recovery != recoveries_.end()) recovery->second.ready_ms = WallMs(now_);
    return SendPeers(*generation, std::nullopt);
  }
  // A reconnected agent asks again; one answer serves all of its ranks.
  if (generation->ranks_of.at(node).front() == ready.rank()) SendPeers(*generation, node);
}

void Core::Impl::SendPeers(const GenerationRuntime& generation, std::optional<NodeId> only) {
  v1::CoordinatorMessage message;
  *message.mutable_peers()->mutable_key() = generation.key;
  for (const RankRuntime& rank : generation.ranks)
    message.mutable_peers()->add_addresses(rank.address);
  if (only) return Send(*only, std::move(message));
  SendToAll(generation, message);
}

void Core::Impl::OnProgress(NodeId node, const v1::NodeProgress& progress) {
  GenerationRuntime* generation = Current(node, progress.key(), -1);
  if (generation == nullptr) return;
  const std::string run_id = progress.key().run_id();
  const Run& run = state_.runs.at(run_id);
  bool evaluates = false;
  for (const v1::RankProgress& rank : progress.ranks()) {
    if (rank.rank() < 0 || Current(node, progress.key(), rank.rank()) == nullptr) continue;
    if (rank.step() > run.GrantedUntil()) continue;  // nobody may be there
    v1::RankProgress& known = generation->ranks[static_cast<std::size_t>(rank.rank())].progress;
    if (rank.begin_seconds() > 0 && known.begin_seconds() == 0) ++generation->begun;
    known = rank;
    if (rank.operation().size() > kMaxOperationBytes) {
      known.set_operation(Cut(rank.operation(), kMaxOperationBytes));
    }
    generation->last_step = std::max(generation->last_step, rank.step());
    // What was due at the step of the state that was taken up comes before the first new step.
    evaluates = evaluates || rank.phase() == v1::RANK_PHASE_EVALUATION;
  }
  if (progress.step().step() <= run.GrantedUntil()) {
    generation->last_step = std::max(generation->last_step, progress.step().step());
  }
  const bool stepped = generation->last_step > run.plan.start_step();
  if (evaluates || stepped) OnStepped(*generation);
  if (stepped && generation->begun == generation->ranks.size()) TellFirstStep(*generation);
  if (node != generation->ranks[0].node) return;
  const std::int64_t known_step = generation->step ? generation->step->step() : 0;
  if (progress.has_step() && progress.step().step() > known_step &&
      progress.step().step() <= run.GrantedUntil()) {
    generation->step = progress.step();
    const double seconds = progress.step().step_seconds();
    if (std::isfinite(seconds) && seconds > 0) {
      double& smoothed = generation->step_seconds;
      smoothed = smoothed == 0 ? seconds : smoothed + kStepSmoothing * (seconds - smoothed);
    }
  }
  if (progress.has_eval() && progress.eval().step() <= run.GrantedUntil()) {
    generation->eval = progress.eval();
  }
  const std::size_t granted = run.windows.size();
  GrantWindows(*generation, 0);
  for (std::size_t i = granted; i < run.windows.size(); ++i) {
    SendToAll(*generation, GrantOf(generation->key, run.windows[i]));
  }
  if (generation->ranks[0].finished) {
    generation->heard_after_finish = true;
    SettleFinal(*generation);
  }
}

void Core::Impl::OnStepped(GenerationRuntime& generation) {
  if (std::exchange(generation.stepped, true)) return;
  consider_moves_ = true;
  UpdateDeadline(generation.key.run_id());
}

void Core::Impl::TellFirstStep(const GenerationRuntime& generation) {
  const std::string& run_id = generation.key.run_id();
  // Told before, by this coordinator or another.
  if (RunOf(generation).phases.phase() == v1::RUN_PHASE_TRAINING) return;
  v1::Fact fact;
  v1::FirstStepDone& done = *fact.mutable_first_step_done();
  *done.mutable_key() = generation.key;
  if (const auto recovery = recoveries_.extract(run_id); recovery) {
    std::int64_t load_ms = 0;
    std::int64_t begin_ms = 0;
    for (const RankRuntime& rank : generation.ranks) {
      load_ms = std::max(load_ms, MillisecondsOf(rank.progress.load_seconds()));
      begin_ms = std::max(begin_ms, MillisecondsOf(rank.progress.begin_seconds()));
    }
    *done.mutable_recovery() = recovery.mapped().Times(load_ms, begin_ms, WallMs(now_));
    // What was begun in a generation before this one, and never told of.
    Sweep(RunOf(generation));
  }
  Emit(std::move(fact));
}

void Core::Impl::OnWindowRequest(NodeId node, const v1::WindowRequest& request) {
  GenerationRuntime* generation = Current(node, request.key(), -1);
  if (generation == nullptr) return;
  const Run& run = RunOf(*generation);
  const std::size_t granted = run.windows.size();
  GrantWindows(*generation, request.until_step());
  for (std::size_t i = 0; i < run.windows.size(); ++i) {
    const v1::CoordinatorMessage grant = GrantOf(generation->key, run.windows[i]);
    if (i >= granted) {
      SendToAll(*generation, grant);
    } else if (run.windows[i].end_step() > generation->last_step) {
      Send(node, grant);  // granted before: the answer may have been lost
    }
  }
}

void Core::Impl::OnPart(NodeId node, const v1::CheckpointPart& part) {
  GenerationRuntime* generation = Current(node, part.key(), part.rank());
  if (generation == nullptr || part.rank() < 0) return;
  const Run& run = RunOf(*generation);
  const std::int64_t step = part.position().step();
  if (step <= run.CommittedStep()) {
    for (const Checkpoint& checkpoint : run.checkpoints) {
      if (checkpoint.position.step() == step) Send(node, CommittedOf(generation->key, checkpoint));
    }
    return;
  }
  if (run.WasDiscarded(step)) return;
  absl::Status fits = CheckPart(run, part);
  bool completes = false;
  if (fits.ok()) {
    const auto [it, added] = generation->checkpoints.try_emplace(step);
    if (added) it->second.deadline = now_.steady + generation->limits.checkpoint;
    const std::size_t before = it->second.parts.size();
    fits = AddPart(part, &it->second);
    const std::size_t parts = it->second.parts.size();
    completes = fits.ok() && parts > before && parts == generation->ranks.size();
  }
  if (!fits.ok()) {
    DiscardInFlight(*generation, step,
                    absl::StrCat("rank ", part.rank(), " on ", NodeNameOf(*generation, part.rank()),
                                 ": ", fits.message()));
  } else {
    generation->last_step = std::max(generation->last_step, step);
    OnStepped(*generation);
  }
  if (completes) {
    const auto wrong = FindDisagreement(generation->checkpoints.at(step), run.plan.layout());
    if (wrong) {
      return FailGeneration(*generation, FailureOf(*generation, wrong->rank, wrong->cause,
                                                   absl::StatusCode::kAborted, wrong->text));
    }
  }
  if (generation->checkpoints.size() > kMaxCheckpointsInFlight) {
    const auto oldest = std::find_if(generation->checkpoints.begin(), generation->checkpoints.end(),
                                     [](const auto& entry) { return !entry.second.writing; });
    DiscardInFlight(*generation, oldest->first, "newer checkpoints overtook it");
  }
  WriteNextManifest(*generation);
  UpdateDeadline(run.id());
  SettleFinal(*generation);
}

void Core::Impl::OnCheckpointFailed(NodeId node, const v1::CheckpointFailed& failed) {
  GenerationRuntime* generation = Current(node, failed.key(), failed.rank());
  if (generation == nullptr || failed.rank() < 0) return;
  const Run& run = RunOf(*generation);
  if (failed.step() <= run.CommittedStep() || failed.step() > run.GrantedUntil() ||
      run.WasDiscarded(failed.step())) {
    return;
  }
  DiscardInFlight(
      *generation, failed.step(),
      absl::StrCat("rank ", failed.rank(), " on ", NodeNameOf(*generation, failed.rank()), ": ",
                   Cut(failed.error(), kMaxErrorBytes)));
  WriteNextManifest(*generation);
  UpdateDeadline(run.id());
  SettleFinal(*generation);
}

void Core::Impl::WriteNextManifest(GenerationRuntime& generation) {
  const Run& run = RunOf(generation);
  const auto is_writing = [](const auto& entry) { return entry.second.writing; };
  if (std::any_of(generation.checkpoints.begin(), generation.checkpoints.end(), is_writing)) return;
  for (auto& [step, checkpoint] : generation.checkpoints) {
    if (checkpoint.parts.size() < generation.ranks.size()) continue;
    Manifest manifest = ManifestOf(run, checkpoint);
    checkpoint.writing = true;
    checkpoint.manifest_digest = DigestOf(manifest);
    checkpoint.ledger_digest = manifest.ledger_digest;
    decision_.effects.push_back(WritePendingManifest{
        generation.key, step, CheckpointFolder(run, step), std::move(manifest)});
    return;
  }
}

void Core::Impl::Commit(GenerationRuntime& generation, std::int64_t step) {
  const Run& run = RunOf(generation);
  while (generation.checkpoints.begin()->first < step) {
    DiscardInFlight(generation, generation.checkpoints.begin()->first,
                    absl::StrCat("the checkpoint of step ", step, " was committed before it"));
  }
  const CheckpointInFlight checkpoint = std::move(generation.checkpoints.at(step));
  generation.checkpoints.erase(step);
  if (FirstStepIsDone(run, step)) TellFirstStep(generation);  // heartbeats may be slower
  v1::Fact fact;
  v1::CheckpointCommittedFact& committed = *fact.mutable_checkpoint_committed();
  *committed.mutable_key() = generation.key;
  *committed.mutable_position() = checkpoint.position;
  committed.set_folder(CheckpointFolder(run, step));
  committed.set_manifest_digest(checkpoint.manifest_digest);
  committed.set_ledger_digest(checkpoint.ledger_digest);
  std::int64_t bytes = 0;
  for (const auto& [rank, part] : checkpoint.parts) bytes += part.bytes();
  committed.set_bytes(bytes);
  committed.set_tokens(TokensAt(run, step));
  Emit(std::move(fact));
  decision_.effects.push_back(PublishManifest{run.checkpoints.back().folder});
  SendToAll(generation, CommittedOf(generation.key, run.checkpoints.back()));
  Retire(run);
}

void Core::Impl::Retire(const Run& run) {
  while (static_cast<std::int64_t>(run.checkpoints.size()) > run.file.checkpoint.keep) {
    const Checkpoint& oldest = run.checkpoints.front();
    Discard(run, oldest.position.step(), std::string(oldest.folder),
            absl::StrCat("retired: [checkpoint] keep = ", run.file.checkpoint.keep));
  }
}

void Core::Impl::DiscardInFlight(GenerationRuntime& generation, std::int64_t step,
                                 const std::string& reason) {
  generation.checkpoints.erase(step);
  const Run& run = RunOf(generation);
  Discard(run, step, CheckpointFolder(run, step), reason);
}

Effect Core::Impl::RemovalOf(const v1::CheckpointDiscarded& discarded) {
  if (discarded.damaged()) return SetCheckpointAside{discarded.folder()};
  return DeleteCheckpoint{discarded.folder(), discarded.committed()};
}

void Core::Impl::Discard(const Run& run, std::int64_t step, const std::string& folder,
                         const std::string& reason, bool damaged) {
  v1::Fact fact;
  v1::CheckpointDiscarded& discarded = *fact.mutable_checkpoint_discarded();
  discarded.set_run_id(run.id());
  discarded.set_step(step);
  discarded.set_folder(folder);
  discarded.set_reason(reason);
  const bool committed = run.HasCommitted(folder);
  discarded.set_committed(committed);
  discarded.set_damaged(damaged);
  decision_.effects.push_back(RemovalOf(discarded));
  Emit(std::move(fact));
}

void Core::Impl::OnFinished(NodeId node, const v1::RankFinished& finished) {
  GenerationRuntime* generation = Current(node, finished.key(), finished.rank());
  if (generation == nullptr || finished.rank() < 0) return;
  const Run& run = RunOf(*generation);
  RankRuntime& rank = generation->ranks[static_cast<std::size_t>(finished.rank())];
  if (rank.finished) return;
  const std::int64_t step = finished.step();
  const bool at_end = step == run.file.train.steps || finished.stopped();
  if (!at_end || step < run.plan.start_step() || step > run.GrantedUntil() ||
      (generation->final_step >= 0 && generation->final_step != step)) {
    return FailGeneration(*generation,
                          FailureOf(*generation, finished.rank(), v1::FAILURE_CAUSE_WORKER_ERROR,
                                    absl::StatusCode::kInternal,
                                    absl::StrCat("it finished at step ", step, " of ",
                                                 run.file.train.steps, ", where it cannot")));
  }
  rank.finished = true;
  ++generation->finished;
  OnStepped(*generation);
  if (FirstStepIsDone(run, step)) TellFirstStep(*generation);
  generation->final_step = step;
  generation->last_step = std::max(generation->last_step, step);
  generation->final_deadline = now_.steady + generation->limits.checkpoint;
  UpdateDeadline(run.id());
  SettleFinal(*generation);
}

void Core::Impl::SettleFinal(GenerationRuntime& generation) {
  if (generation.final_step < 0) return;
  const Run& run = RunOf(generation);
  const std::string run_id = run.id();
  const std::int64_t step = generation.final_step;
  const bool committed = run.CommittedStep() == step;
  if (!IsSettled(run, step)) {
    if (now_.steady < generation.final_deadline) return;
    const auto late = std::find_if(generation.ranks.begin(), generation.ranks.end(),
                                   [](const RankRuntime& rank) { return !rank.finished; });
    const auto rank = static_cast<std::int32_t>(
        late == generation.ranks.end() ? 0 : late - generation.ranks.begin());
    DiscardInFlight(generation, step,
                    absl::StrCat("rank ", rank, " on ", NodeNameOf(generation, rank),
                                 " neither wrote its part nor finished in time"));
    UpdateDeadline(run_id);
  }
  if (generation.finished < generation.ranks.size()) {
    if (now_.steady < generation.final_deadline) return;
    const auto late = std::find_if(generation.ranks.begin(), generation.ranks.end(),
                                   [](const RankRuntime& rank) { return !rank.finished; });
    const auto rank = static_cast<std::int32_t>(late - generation.ranks.begin());
    return FailGeneration(
        generation,
        FailureOf(generation, rank, v1::FAILURE_CAUSE_STALL, absl::StatusCode::kDeadlineExceeded,
                  absl::StrCat("it did not finish at step ", step, " as others did")));
  }
  // The last step's and evaluation's records travel with heartbeats.
  if (!generation.heard_after_finish) return;
  if (committed) {
    const std::string reason = step == run.file.train.steps
                                   ? absl::StrCat("all ", step, " steps are done")
                               : run.move_reason.empty() || !run.stop_reason.empty()
                                   ? absl::StrCat("its ranks stopped at step ", step)
                                   : absl::StrCat("it moved at step ", step, ": ", run.move_reason);
    return EndGeneration(run_id, reason, {});
  }
  // The ranks hold what was not committed.
  if (!run.move_reason.empty() && run.stop_reason.empty() && step < run.file.train.steps) {
    return EndGeneration(
        run_id, absl::StrCat("its ranks left at step ", step, " without a checkpoint"), {});
  }
  const auto why = std::find_if(run.discarded.rbegin(), run.discarded.rend(),
                                [step](const auto& d) { return d.step() == step; });
  const std::string reason = absl::StrCat(
      "the last checkpoint (step ", step,
      ") was not committed: ", why == run.discarded.rend() ? "it was discarded" : why->reason(),
      "; `paceline resume` goes on from step ", run.CommittedStep());
  EndGeneration(run_id, reason,
                FailureOf(generation, 0, v1::FAILURE_CAUSE_CHECKPOINT,
                          absl::StatusCode::kUnavailable, reason));
}

void Core::Impl::OnFailed(NodeId node, const v1::RankFailed& failed) {
  GenerationRuntime* generation = Current(node, failed.key(), failed.rank());
  if (generation == nullptr || failed.rank() < 0) return;
  RankRuntime& rank = generation->ranks[static_cast<std::size_t>(failed.rank())];
  if (rank.finished) return;
  const v1::RankFailed failure = Bounded(failed);
  if (!IsSecondary(failure)) return FailGeneration(*generation, failure);
  rank.failed = true;
  // Survivors often speak first; what died is to be named. A rank's death is told by its agent;
  // an agent's or a machine's is known when the lease has run out, one heartbeat for the message.
  if (!generation->failure) {
    generation->failure = failure;
    generation->trouble_ms = WallMs(now_);
    generation->failure_deadline =
        now_.steady + generation->limits.lease + generation->limits.heartbeat;
    UpdateDeadline(failed.key().run_id());
  }
  const bool nobody_left =
      std::all_of(generation->ranks.begin(), generation->ranks.end(),
                  [](const RankRuntime& other) { return other.failed || other.finished; });
  if (nobody_left) FailGeneration(*generation, v1::RankFailed(*generation->failure));
}

}  // namespace paceline::core
