// Turns positions into micro-batches: which samples a rank takes of a step, and their tokens.
// Sample order is the run's, whatever the layout: step index s takes draws
// [s * global_batch, (s + 1) * global_batch), and rank r of n the r-th n-th of them.
// Invariant: buffers are made once; loading allocates nothing.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/run_file.h"
#include "common/status.h"
#include "worker/data/corpus.h"
#include "worker/model/model.h"

namespace paceline {

class BatchLoader {
 public:
  // `shuffle`: the keyed permutation (training), or the corpus's own order (held-out text).
  static absl::StatusOr<std::unique_ptr<BatchLoader>> Open(const std::vector<DataSource>& sources,
                                                           const RunFile& run_file, bool shuffle);

  // The micro-batch of draws [first_draw, first_draw + rows). Valid until the next Load.
  absl::StatusOr<MicroBatch> Load(std::int64_t first_draw, std::int64_t rows);
  // Hints that these draws come soon.
  void WillNeed(std::int64_t first_draw, std::int64_t draws) const;

  const SampleOrder& order() const { return *order_; }

 private:
  BatchLoader() = default;

  std::unique_ptr<SampleOrder> order_;
  std::int64_t sequence_ = 0;
  std::vector<std::int32_t> sample_;  // sequence + 1 tokens
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> targets_;
};

// The text that a run file names, open. No rank changes what is in it, so a process opens it once.
struct Corpora {
  std::unique_ptr<BatchLoader> train;
  std::unique_ptr<BatchLoader> valid;  // null: no held-out text
};

// As BatchLoader::Open.
absl::StatusOr<Corpora> OpenCorpora(const RunFile& run_file);

}  // namespace paceline
