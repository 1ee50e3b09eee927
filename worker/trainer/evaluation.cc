#include "worker/trainer/evaluation.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>

namespace paceline {

absl::StatusOr<v1::EvalRecord> Evaluate(const RunFile& run_file, Model& model, BatchLoader& valid,
                                        Communicator& communicator, Stream& stream) {
  const auto begin = std::chrono::steady_clock::now();
  const TrainSection& train = run_file.train;
  const std::int64_t draws =
      std::min(train.eval_batches * train.global_batch_size, valid.order().samples_per_epoch());
  // Loss and tokens, summed over ranks.
  std::array<double, 2> sums = {0, 0};
  const std::int64_t rows = train.micro_batch_size;
  for (std::int64_t batch = communicator.rank(); batch * rows < draws;
       batch += communicator.size()) {
    const std::int64_t first = batch * rows;
    ASSIGN_OR_RETURN(const MicroBatch micro_batch,
                     valid.Load(first, std::min(rows, draws - first)));
    sums[0] += static_cast<double>(model.Forward(micro_batch));
    sums[1] += static_cast<double>(micro_batch.tokens.size());
  }
  model.ResetExpertTokens();
  communicator.AllReduceSum(stream, "evaluation all-reduce", sums.data(), sums.size(),
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
