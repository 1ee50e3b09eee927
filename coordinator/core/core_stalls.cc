// Generations that stand still, inside Core: what heartbeats tell goes to the generation's watch,
// and its verdict ends the generation.
#include "absl/strings/str_cat.h"
#include "coordinator/core/core_impl.h"

namespace paceline::core {

void Core::Impl::WatchProgress(NodeId node, const v1::GenerationKey& key) {
  const auto it = generations_.find(key.run_id());
  if (it == generations_.end() || it->second.key.generation() != key.generation()) return;
  GenerationRuntime& generation = it->second;
  const auto ranks = generation.ranks_of.find(node);
  if (ranks == generation.ranks_of.end()) return;
  const Run& run = RunOf(generation);
  const v1::Layout& layout = run.plan.layout();
  const StallWatch::Options options = {
      .limits = generation.limits,
      .eval_batches = run.file.train.eval_batches,
      .same_operations = layout.pipeline() == 1 && layout.expert() == 1};
  StallWatch& watch = generation.watch;
  watch.Listen(options, now_.steady);
  for (const std::int32_t rank : ranks->second) {
    watch.Hear(generation.ranks[static_cast<std::size_t>(rank)].progress, now_.steady);
  }
  if (generation.step) {
    watch.HearStep(generation.step->step(), generation.step->step_seconds());
  }
  // Start-up, a failure that waits for its cause, and the end have deadlines of their own.
  if (!generation.stepped || generation.failure || generation.final_step >= 0) return;
  const std::optional<Stall> stall = watch.Judge(options, generation.ranks.size(), now_.steady);
  if (!stall) return;
  const NodeId at = generation.ranks[static_cast<std::size_t>(stall->rank)].node;
  const Node* culprits = state_.FindNode(at);
  v1::RankFailed failure;
  *failure.mutable_key() = generation.key;
  failure.set_rank(stall->rank);
  failure.set_cause(v1::FAILURE_CAUSE_STALL);
  failure.set_status_code(static_cast<std::int32_t>(absl::StatusCode::kDeadlineExceeded));
  failure.set_exit_code(-1);
  failure.set_error(absl::StrCat("rank ", stall->rank, " on ", NodeNameOf(generation, stall->rank),
                                 " (host ", culprits == nullptr ? "unknown" : culprits->info.host(),
                                 ") ", stall->known, "; inferred: ", stall->inferred));
  generation.trouble_ms = WallMs(now_) - static_cast<std::int64_t>(1e3 * stall->seconds);
  FailGeneration(generation, failure);
}

}  // namespace paceline::core
