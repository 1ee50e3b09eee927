// Writes a checkpoint's weights as a model folder that transformers loads: config.json,
// model.safetensors (or shards and model.safetensors.index.json), the tokenizer's files.
// Invariant: in float32 every weight is the checkpoint's, bit for bit; the folder appears whole or
// not at all. No more than one tensor is in memory.
// Threading: one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/huggingface/config.h"
#include "worker/huggingface/tokenizer_files.h"

namespace paceline::huggingface {

// As transformers' save_pretrained: "5GB".
inline constexpr std::int64_t kShardBytesMax = 5'000'000'000;

struct ExportOptions {
  std::string output;
  std::string dtype = "float32";  // or "bfloat16": rounded to nearest, ties to even
  std::vector<NamedFile> tokenizer;
  std::optional<std::int64_t> eos_token_id;
  bool replace = false;                           // an earlier export at `output`
  std::int64_t shard_bytes_max = kShardBytesMax;  // a tensor above it has a file of its own
};

struct Exported {
  Architecture architecture = Architecture::kLlama;
  std::int64_t tensors = 0;
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;          // of the weights' files
  std::vector<std::string> files;  // all, in the order of their writing
};

// kInvalidArgument: no model of transformers computes what this one does (names the fields), or an
// option is wrong. kAlreadyExists: `output` exists. kDataLoss: the checkpoint is damaged.
absl::StatusOr<Exported> Export(const CheckpointReader& checkpoint, const ExportOptions& options);

}  // namespace paceline::huggingface
