#include "worker/trainer/batch_loader.h"

#include <algorithm>

namespace paceline {

absl::StatusOr<std::unique_ptr<BatchLoader>> BatchLoader::Open(
    const std::vector<DataSource>& sources, const RunFile& run_file, bool shuffle) {
  std::unique_ptr<BatchLoader> loader(new BatchLoader);
  loader->sequence_ = run_file.train.sequence_length;
  ASSIGN_OR_RETURN(loader->order_,
                   SampleOrder::Open(sources, loader->sequence_, run_file.model.vocab_size,
                                     run_file.run.seed, shuffle));
  const auto tokens = static_cast<std::size_t>(loader->sequence_ * run_file.train.micro_batch_size);
  loader->sample_.resize(static_cast<std::size_t>(loader->sequence_) + 1);
  loader->tokens_.resize(tokens);
  loader->targets_.resize(tokens);
  return loader;
}

absl::StatusOr<MicroBatch> BatchLoader::Load(std::int64_t first_draw, std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    RETURN_IF_ERROR(order_->Read(first_draw + row, sample_));
    std::copy(sample_.begin(), sample_.end() - 1, tokens_.begin() + row * sequence_);
    std::copy(sample_.begin() + 1, sample_.end(), targets_.begin() + row * sequence_);
  }
  const auto used = static_cast<std::size_t>(rows * sequence_);
  return MicroBatch{.tokens = {tokens_.data(), used},
                    .targets = {targets_.data(), used},
                    .rows = rows,
                    .sequence = sequence_};
}

void BatchLoader::WillNeed(std::int64_t first_draw, std::int64_t draws) const {
  order_->WillNeed(first_draw, draws);
}

absl::StatusOr<Corpora> OpenCorpora(const RunFile& run_file) {
  Corpora corpora;
  ASSIGN_OR_RETURN(corpora.train,
                   BatchLoader::Open(run_file.data.train, run_file, /*shuffle=*/true));
  if (run_file.data.valid.empty()) return corpora;
  ASSIGN_OR_RETURN(corpora.valid,
                   BatchLoader::Open(run_file.data.valid, run_file, /*shuffle=*/false));
  return corpora;
}

}  // namespace paceline
