#include "worker/trainer/rank_layout.h"

#include "absl/strings/str_cat.h"
#include "common/pipeline_schedule.h"

namespace paceline {

ParallelLayout LayoutOf(const v1::Layout& told) {
  ParallelLayout layout;
  layout.pipeline = told.pipeline();
  layout.data = told.data();
  layout.expert = told.expert();
  layout.virtual_stages = told.virtual_stages();
  layout.schedule = told.schedule();
  layout.shard_optimizer = told.shard_optimizer();
  return layout;
}

absl::Status CheckRankStart(const RunFile& run_file, const v1::RankStart& start) {
  const ParallelLayout layout = LayoutOf(start.layout());
  const bool sizes_fit = layout.pipeline >= 1 && layout.data >= 1 && layout.expert >= 1 &&
                         layout.virtual_stages >= 1 && layout.data % layout.expert == 0;
  if (!sizes_fit || start.rank() < 0 || start.rank() >= layout.world_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", start.rank(), " has no place in layout pipeline ", layout.pipeline,
                     " x data ", layout.data, " (expert ", layout.expert, ")"));
  }
  if (layout.expert > 1 && (run_file.model.n_routed_experts == 0 ||
                            run_file.model.n_routed_experts % layout.expert != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("[model] n_routed_experts = ", run_file.model.n_routed_experts,
                     " does not split over ", layout.expert, " ranks"));
  }
  const TrainSection& train = run_file.train;
  RETURN_IF_ERROR(
      Annotate(CheckMicroBatches(layout, train.global_batch_size / train.micro_batch_size),
               absl::StrCat("[train] global_batch_size = ", train.global_batch_size,
                            ", micro_batch_size = ", train.micro_batch_size)));
  const std::int64_t segments = std::int64_t{layout.pipeline} * layout.virtual_stages;
  if (segments > run_file.model.num_hidden_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("[model] num_hidden_layers = ", run_file.model.num_hidden_layers,
                     " does not split into ", segments, " segments"));
  }
  const MicroBatchRange own = MicroBatchesOf(layout, CoordinatesOf(layout, start.rank()).data,
                                             train.global_batch_size / train.micro_batch_size);
  return CheckPipelineShape({.schedule = layout.schedule,
                             .stages = layout.pipeline,
                             .virtual_stages = layout.virtual_stages,
                             .micro_batches = static_cast<int>(own.count)});
}

}  // namespace paceline
