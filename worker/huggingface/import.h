// Makes a checkpoint of a model folder of Hugging Face: rank-00000.safetensors, manifest.json and
// model.toml, the [model] section of a run file that starts from it ([checkpoint] init).
// Invariant: the weights are the folder's, widened to float32 where they are not; the checkpoint
// appears whole or not at all. No more than a piece of one tensor is in memory.
// Threading: one thread at a time.
#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"
#include "worker/huggingface/config.h"

namespace paceline::huggingface {

struct ImportOptions {
  std::string input;
  std::string output;
  bool replace = false;  // an earlier import at `output`
};

struct Imported {
  Config config;
  std::int64_t tensors = 0;
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
  std::string model_toml;
};

// kInvalidArgument, kNotFound: names the file and the field or tensor, and what it may be.
// kAlreadyExists: `output` exists.
absl::StatusOr<Imported> Import(const ImportOptions& options);

}  // namespace paceline::huggingface
