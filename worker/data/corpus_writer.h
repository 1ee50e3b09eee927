// Writes a corpus folder: Megatron shards and their manifest.
// Invariant: a folder without manifest.json is no corpus, and the manifest is written last, after
// all that it names is durable.
// Threading: one object belongs to one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/status.h"
#include "worker/data/corpus_manifest.h"

namespace paceline {

// Megatron's choice: u16 for a vocabulary under 65,500, else i32.
inline constexpr std::int64_t kMegatronU16VocabMax = 65499;

class CorpusWriter {
 public:
  // `folder` must exist and be empty. A shard is closed at `shard_tokens` tokens; a document that
  // is longer goes on in the next, as one of its own.
  CorpusWriter(std::string folder, std::int64_t vocab_size, std::int64_t shard_tokens);
  ~CorpusWriter();
  CorpusWriter(CorpusWriter&&) noexcept;
  CorpusWriter& operator=(CorpusWriter&&) noexcept;

  // Tokens must be in [0, vocab_size). kResourceExhausted: the disk is full.
  absl::Status Append(std::span<const std::int32_t> tokens);
  void EndDocument();
  std::int64_t tokens() const;

  // Ends the last shard and writes the manifest, whose tokenizer, source and licence are those
  // of `notes`; returns it whole.
  absl::StatusOr<CorpusManifest> Finish(CorpusManifest notes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
