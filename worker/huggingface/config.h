// config.json of a model folder of Hugging Face: which of transformers' models a model is, and
// the fields that make it exactly that one.
//   dense                                              LlamaForCausalLM
//   softmax routing, no shared experts                 MixtralForCausalLM
//   sigmoid routing                                    Glm4MoeForCausalLM
// Sources: transformers' modeling_llama.py, modeling_mixtral.py and modeling_glm4_moe.py. All
// three turn the halves of a head against each other (rotate-half), as Paceline does; GLM-4 MoE
// turns only partial_rotary_factor of a head, so here that is 1. Its biases in attention
// (attention_bias), norms of queries and keys (use_qk_norm) and groups of experts (n_group) have
// no counterpart in Paceline, and are off.
// Invariant: a model is described only where the transformers model computes the same function.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/run_file.h"
#include "common/status.h"

namespace paceline::huggingface {

enum class Architecture { kLlama, kMixtral, kGlm4Moe };

// "LlamaForCausalLM".
std::string ClassName(Architecture architecture);

// kInvalidArgument: none of them computes what `model` does; names every field that is in the way.
absl::StatusOr<Architecture> ArchitectureOf(const ModelSection& model);

struct Config {
  Architecture architecture = Architecture::kLlama;
  ModelSection model;
  std::int64_t max_position_embeddings = 0;
  std::optional<std::int64_t> eos_token_id;
};

// `dtype`: "float32" or "bfloat16". Holds the fields that transformers 4 and 5 read.
std::string ConfigJson(const Config& config, const std::string& dtype);

// The model that a config.json describes. kInvalidArgument: names the field, its value and what
// it may be.
absl::StatusOr<Config> ParseConfig(const std::string& json);

}  // namespace paceline::huggingface
