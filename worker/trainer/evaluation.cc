#include "worker/trainer/evaluation.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

namespace paceline {
namespace {

std::int64_t RoundUp(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The forward passes of the training schedule.
std::vector<PipelineAction> ForwardActions(const ParallelLayout& layout, int stage,
                                           std::int64_t micro_batches) {
  std::vector<PipelineAction> actions =
      PipelineActions({.schedule = layout.schedule,
                       .stages = layout.pipeline,
                       .virtual_stages = layout.virtual_stages,
                       .micro_batches = static_cast<int>(micro_batches)},
                      stage);
  std::erase_if(actions,
                [](const PipelineAction& action) { return action.pass != Pass::kForward; });
  return actions;
}

}  // namespace

absl::StatusOr<v1::EvalRecord> Evaluate(const RunFile& run_file, PipelineExecutor& executor,
                                        BatchLoader& valid, ParallelGroups& groups,
                                        Stream& stream) {
  const auto begin = std::chrono::steady_clock::now();
  const TrainSection& train = run_file.train;
  const ParallelLayout& layout = groups.layout();
  const std::int64_t draws =
      std::min(train.eval_batches * train.global_batch_size, valid.order().samples_per_epoch());
  const std::int64_t rows = train.micro_batch_size;
  // Every rank computes as many micro-batches as every other, since experts and stages wait for
  // each other; those beyond the text repeat its beginning and count for nothing.
  const std::int64_t micro_batches =
      RoundUp(RoundUp(RoundUp(draws, rows) / rows, layout.data) / layout.data, layout.pipeline);
  const auto first_draw = [&](int micro_batch) {
    return (std::int64_t{micro_batch} * layout.data + groups.coordinates().data) * rows;
  };
  // Loss and tokens, summed over ranks.
  std::array<double, 2> sums = {0, 0};
  PassHandlers handlers;
  handlers.load = [&](int micro_batch) -> absl::StatusOr<MicroBatch> {
    RETURN_IF_ERROR(groups.status());
    const std::int64_t first = first_draw(micro_batch);
    if (first >= draws) return valid.Load(0, std::min(rows, draws));
    return valid.Load(first, std::min(rows, draws - first));
  };
  handlers.loss = [&](int micro_batch, float loss) {
    const std::int64_t first = first_draw(micro_batch);
    if (first >= draws) return;
    sums[0] += static_cast<double>(loss);
    sums[1] += static_cast<double>(std::min(rows, draws - first) * train.sequence_length);
  };
  RETURN_IF_ERROR(
      executor.Run(ForwardActions(layout, groups.coordinates().stage, micro_batches), handlers));
  groups.world().AllReduceSum(stream, "evaluation all-reduce", sums.data(), sums.size(),
                              DataType::kFloat64);
  RETURN_IF_ERROR(stream.Synchronize());

  v1::EvalRecord record;
  record.set_tokens(static_cast<std::int64_t>(sums[1]));
  record.set_valid_loss(sums[0] / sums[1]);
  record.set_eval_seconds(
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return record;
}

}  // namespace paceline
