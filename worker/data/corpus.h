// A corpus: token shards in Megatron's (.bin/.idx) or llm.c's (.bin) format, memory-mapped, one
// after the other as one long row of tokens. Sample i of a corpus is tokens [iS, iS+S] (S+1 of
// them: inputs and targets overlap by one).
// Invariant: an opened corpus has been checked (lengths, header, manifest digests where a
// manifest stands beside it); its digest names its content.
// Threading: const methods from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/run_file.h"
#include "common/status.h"

namespace paceline {

class Corpus {
 public:
  // `path`: a folder with manifest.json, a Megatron prefix or .bin or .idx, or an llm.c .bin.
  // kInvalidArgument names the file and what is wrong with it; kDataLoss: a digest is off.
  static absl::StatusOr<std::unique_ptr<Corpus>> Open(const std::string& path);
  ~Corpus();

  std::int64_t tokens() const;
  // Whole samples of `sequence` tokens: floor((tokens - 1) / sequence).
  std::int64_t Samples(std::int64_t sequence) const;
  // sha256 over the shards' digests and lengths, 64 hex digits.
  const std::string& digest() const;

  // Copies tokens [begin, begin + out.size()) into `out`. kInvalidArgument: a token is not in
  // [0, vocab_size); the shard, the position and the token are named.
  absl::Status Read(std::int64_t begin, std::int64_t vocab_size,
                    std::span<std::int32_t> out) const;

 private:
  Corpus();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The order of samples in an epoch: a keyed permutation of [0, samples) (a Feistel network with
// cycle walking), a function of (seed, epoch, index) alone.
std::int64_t PermutedSample(std::uint64_t seed, std::int64_t epoch, std::int64_t index,
                            std::int64_t samples);

// The samples of a run, over epochs and weighted sources, as one endless row: draw d of the
// run is a function of (seed, d) alone, whatever the layout.
class SampleOrder {
 public:
  // All sources of `sources`, opened. One source of weight 1 is the plain case.
  static absl::StatusOr<std::unique_ptr<SampleOrder>> Open(
      const std::vector<DataSource>& sources, std::int64_t sequence, std::int64_t vocab_size,
      std::uint64_t seed, bool shuffle);
  ~SampleOrder();

  // The sequence + 1 tokens of draw `draw` (0 is the run's first).
  absl::Status Read(std::int64_t draw, std::span<std::int32_t> out) const;
  // Hints the page cache that these draws come next.
  void WillNeed(std::int64_t first_draw, std::int64_t count) const;
  std::int64_t samples_per_epoch() const;  // over all sources
  std::int64_t tokens() const;
  const std::string& digest() const;  // of sources, weights and sequence length

 private:
  SampleOrder();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
