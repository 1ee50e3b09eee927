// A corpus: token shards in Megatron's (.bin/.idx) or llm.c's (.bin) format, memory-mapped, one
// after the other as one long row of tokens. Sample i of a corpus is tokens [iS, iS+S] (S+1 of
// them: inputs and targets overlap by one).
// Invariant: an opened corpus has been checked: headers, the lengths in .idx, header and manifest
// against the files' sizes. Content is proven only by VerifyDigests, which reads all of it: the
// command line calls it once at a run's start, workers trust the manifest.
// Threading: const methods from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/run_file.h"
#include "common/status.h"
#include "worker/data/corpus_manifest.h"

namespace paceline {

class Corpus {
 public:
  // `path`: a folder with manifest.json, a Megatron prefix or .bin or .idx, or an llm.c .bin.
  // kNotFound, kInvalidArgument: names the file and what is wrong with it. kDataLoss: a file's
  // size is not what the manifest says.
  static absl::StatusOr<std::unique_ptr<Corpus>> Open(const std::string& path);
  ~Corpus();

  std::int64_t tokens() const;
  // Whole samples of `sequence` tokens: floor((tokens - 1) / sequence).
  std::int64_t Samples(std::int64_t sequence) const;
  // sha256 over the shards' digests and lengths, 64 hex digits. A shard's digest is the manifest's
  // where there is one; else a fingerprint of the .bin (worker/data/digest.h): all of a small
  // file, samples of one above 16 MiB.
  const std::string& digest() const;
  // The manifest; for plain files one made from them, without digests.
  const CorpusManifest& manifest() const;

  // Reads every shard and compares it with the manifest's sha256; a corpus without a manifest has
  // nothing to compare. kDataLoss: names the file whose digest is off.
  absl::Status VerifyDigests() const;

  // Copies tokens [begin, begin + out.size()) into `out`. kInvalidArgument: a token is not in
  // [0, vocab_size); the shard, the position and the token are named.
  absl::Status Read(std::int64_t begin, std::int64_t vocab_size, std::span<std::int32_t> out) const;
  // Hints the page cache that these tokens come next.
  void WillNeed(std::int64_t begin, std::int64_t count) const;

 private:
  Corpus();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The order of samples in an epoch: a keyed permutation of [0, samples) (a Feistel network with
// cycle walking), a function of (seed, epoch, index) alone. `index` is in [0, samples).
std::int64_t PermutedSample(std::uint64_t seed, std::int64_t epoch, std::int64_t index,
                            std::int64_t samples);

// Where a draw comes from.
struct DrawnSample {
  std::int64_t source = 0;  // index into the sources
  std::int64_t epoch = 0;   // of that source
  std::int64_t sample = 0;  // in [0, Corpus::Samples)
  bool operator==(const DrawnSample&) const = default;
};

// The samples of a run, over epochs and weighted sources, as one endless row: draw d of the
// run is a function of (seed, d) alone, whatever the layout. Each source is gone through epoch by
// epoch, every sample once in each. Of the first d draws source k gets more than d*w - 1 and fewer
// than d*w + 1, where w is its share of the weights (rounded to a multiple of 1/65536 where no
// smaller denominator fits).
class SampleOrder {
 public:
  // All sources of `sources`, opened. One source of weight 1 is the plain case. Without `shuffle`
  // each source is read in order. kInvalidArgument: a weight that is not positive, a corpus with
  // no whole sample, a corpus made for a vocabulary larger than `vocab_size`.
  static absl::StatusOr<std::unique_ptr<SampleOrder>> Open(const std::vector<DataSource>& sources,
                                                           std::int64_t sequence,
                                                           std::int64_t vocab_size,
                                                           std::uint64_t seed, bool shuffle);
  ~SampleOrder();

  // The sequence + 1 tokens of draw `draw` (0 is the run's first).
  absl::Status Read(std::int64_t draw, std::span<std::int32_t> out) const;
  // What is checked once at a run's start: every source's digests; and of a source whose
  // vocabulary no manifest states, that its first 2^28 tokens are in the vocabulary (the rest is
  // checked as it is read). kDataLoss, kInvalidArgument: as VerifyDigests and Read.
  absl::Status Verify() const;
  // Hints the page cache that these draws come next.
  void WillNeed(std::int64_t first_draw, std::int64_t count) const;
  DrawnSample Locate(std::int64_t draw) const;
  std::int64_t samples_per_epoch() const;  // over all sources
  std::int64_t tokens() const;
  const std::string& digest() const;  // of sources, weights and sequence length

 private:
  SampleOrder();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
