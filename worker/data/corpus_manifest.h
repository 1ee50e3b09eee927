// manifest.json of a corpus folder: which shards, how long, with which digests, whence, and where
// they may be read.
//   {"version": 1, "format": "megatron", "vocab_size": 256, "tokenizer": "bytes",
//    "source": "...", "licence": "...", "tokens": 10, "documents": 1,
//    "shards": [{"file": "shard-00000.bin", "tokens": 10, "documents": 1, "bytes": 20,
//                "sha256": "...", "index_bytes": 54, "index_sha256": "...", "site": ""}]}
// `format` is "megatron" or "llm.c" (which has no index_*). `tokenizer` is "bytes",
// "sentencepiece:FILE" with FILE in the folder, or "" where nobody knows. `site` binds a shard to
// one site; "" may be read anywhere. Unknown keys are ignored, so that notes may be added by hand.
// Invariant: totals are the sums over shards; file names stay inside the folder.
// Threading: plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace paceline {

inline constexpr int kCorpusManifestVersion = 1;
inline constexpr char kCorpusManifestFile[] = "manifest.json";

struct ShardEntry {
  std::string file;  // the .bin, relative to the folder
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::int64_t bytes = 0;
  std::string sha256;  // of the .bin; empty: unknown, never verified
  std::int64_t index_bytes = 0;
  std::string index_sha256;
  std::string site;
};

struct CorpusManifest {
  std::string format;
  std::int64_t vocab_size = 0;  // 0: unknown
  std::string tokenizer;
  std::string source;
  std::string licence;
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::vector<ShardEntry> shards;
};

std::string ToJson(const CorpusManifest& manifest);

// kInvalidArgument: names `path`, the field, and what it may be. kFailedPrecondition: written by
// a newer Paceline.
absl::StatusOr<CorpusManifest> ParseCorpusManifest(const std::string& json,
                                                   const std::string& path);

// Reads and parses FOLDER/manifest.json. kNotFound: there is none.
absl::StatusOr<CorpusManifest> LoadCorpusManifest(const std::string& folder);

}  // namespace paceline
