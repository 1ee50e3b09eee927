// Proves that a row of draws takes every sample of a source once in each whole epoch, and at most
// once in one that has begun.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/status.h"
#include "launch/cli/lineage_audit.h"
#include "worker/data/corpus.h"

namespace paceline::cli {

// What the draws took of one source.
struct SourceDraws {
  std::int64_t samples = 0;       // of an epoch
  std::int64_t whole_epochs = 0;  // that ended, each sample drawn once
  std::int64_t in_last = 0;       // samples drawn of the epoch that has begun
};

// More samples than the bitmap has bits are gone through in several turns.
inline constexpr std::int64_t kBitmapBytesMax = std::int64_t{256} << 20;

// `locate` says where a draw comes from (SampleOrder::Locate), `samples` how many each source has.
// Draws [first, end) are looked at one by one. kDataLoss: a sample is drawn twice in one epoch or
// left out of a whole one, or the epochs are not in order; names draw, source and sample.
absl::StatusOr<std::vector<SourceDraws>> ProveDraws(
    const std::function<DrawnSample(std::int64_t)>& locate,
    const std::vector<std::int64_t>& samples, std::int64_t first, std::int64_t end,
    std::int64_t bitmap_bytes_max = kBitmapBytesMax);

// sha256 of all that was proven: who proves the same lineage again gets the same.
std::string ProofDigest(const Lineage& lineage, const std::vector<SourceDraws>& sources);

}  // namespace paceline::cli
