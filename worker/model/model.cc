#include "worker/model/model.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "worker/kernels/router.h"
#include "worker/model/transformer.h"

namespace paceline {
namespace {

struct Range {
  const char* field;
  std::int64_t value;
  std::int64_t min;
  std::int64_t max;
};

absl::Status CheckRange(const Range& range) {
  if (range.value >= range.min && range.value <= range.max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(range.field, " = ", range.value, ": must be ", range.min, " to ", range.max));
}

// The upper bounds keep every product of sizes inside 63 bits.
absl::Status ValidateSparse(const ModelSection& model) {
  if (model.n_routed_experts == 0) return absl::OkStatus();
  for (const Range& range : std::initializer_list<Range>{
           {"[model] n_routed_experts", model.n_routed_experts, 1, 1 << 12},
           {"[model] n_shared_experts", model.n_shared_experts, 0, 1 << 6},
           {"[model] moe_intermediate_size", model.moe_intermediate_size, 1, 1 << 17},
           {"[model] num_experts_per_tok", model.num_experts_per_tok, 1,
            std::min<std::int64_t>(model.n_routed_experts, kernels::kRouterTopKMax)},
           {"[model] first_k_dense_replace", model.first_k_dense_replace, 0,
            model.num_hidden_layers},
       }) {
    RETURN_IF_ERROR(CheckRange(range));
  }
  if (model.scoring_func != "sigmoid" && model.scoring_func != "softmax") {
    return absl::InvalidArgumentError(absl::StrCat("[model] scoring_func = \"", model.scoring_func,
                                                   "\": must be \"sigmoid\" or \"softmax\""));
  }
  return absl::OkStatus();
}

absl::Status Validate(const ModelSection& model, const ModelOptions& options) {
  for (const Range& range : std::initializer_list<Range>{
           {"[model] vocab_size", model.vocab_size, 1, 1 << 24},
           {"[model] hidden_size", model.hidden_size, 1, 1 << 17},
           {"[model] num_hidden_layers", model.num_hidden_layers, 1, 1 << 10},
           {"[model] num_attention_heads", model.num_attention_heads, 1, 1 << 10},
           {"[model] num_key_value_heads", model.num_key_value_heads, 1, 1 << 10},
           {"[model] head_dim", model.head_dim, 2, 1 << 10},
           {"[model] intermediate_size", model.intermediate_size,
            model.IsSparse(0) || model.n_routed_experts < 0 ? 0 : 1, 1 << 20},
           {"[model] n_routed_experts", model.n_routed_experts, 0, 1 << 12},
           {"[train] micro_batch_size", options.micro_batch_size, 1, 1 << 12},
           {"[train] sequence_length", options.sequence_length, 1, 1 << 20},
           {"[train] micro_batch_size * sequence_length",
            options.micro_batch_size * options.sequence_length, 1, 1 << 24},
       }) {
    RETURN_IF_ERROR(CheckRange(range));
  }
  if (model.hidden_size % kAlignElements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("[model] hidden_size = ", model.hidden_size,
                                                   ": must be a multiple of ", kAlignElements));
  }
  if (model.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("[model] head_dim = ", model.head_dim,
                     ": must be even, since rotary embedding turns pairs"));
  }
  if (model.num_attention_heads % model.num_key_value_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("[model] num_key_value_heads = ", model.num_key_value_heads,
                     ": must divide num_attention_heads = ", model.num_attention_heads));
  }
  return ValidateSparse(model);
}

// Parts come from a layout, so only what the run file can ask for is the user's mistake.
absl::Status ValidatePart(const ModelSection& model, const ModelOptions& options) {
  const ModelPart& part = options.part;
  PACELINE_CHECK(options.slots >= 1);
  PACELINE_CHECK(part.first_expert >= 0 && part.end_expert <= model.n_routed_experts);
  if (model.n_routed_experts > 0) {
    PACELINE_CHECK(part.experts() > 0 && model.n_routed_experts % part.experts() == 0 &&
                   part.first_expert % part.experts() == 0);
  }
  if (model.n_routed_experts > 0) {
    const std::int64_t ranks = model.n_routed_experts / part.experts();
    const std::int64_t rows = ranks * options.micro_batch_size * options.sequence_length *
                              std::min(model.num_experts_per_tok, part.experts());
    if (rows > std::numeric_limits<std::int32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "[layout] expert = ", ranks, ": one rank may get ", rows,
          " rows of a micro-batch, more than 2147483647; use a smaller micro_batch_size"));
    }
  }
  std::int64_t end = 0;
  for (const LayerRange& segment : part.segments) {
    PACELINE_CHECK(segment.first >= end && segment.layers() > 0 &&
                   segment.end <= model.num_hidden_layers);
    end = segment.end;
  }
  if (model.tie_word_embeddings && part.segments.front().layers() != model.num_hidden_layers) {
    return absl::InvalidArgumentError(
        "[model] tie_word_embeddings = true: the model cannot be split into segments, since the "
        "first and the last would share a table; use pipeline = 1 or an untied output matrix");
  }
  return absl::OkStatus();
}

}  // namespace

ExpertLoad ExpertLoadOf(std::span<const std::int64_t> tokens) {
  ExpertLoad load;
  std::int64_t sum = 0;
  std::int64_t most = 0;
  for (const std::int64_t count : tokens) {
    sum += count;
    most = std::max(most, count);
    load.dead += count == 0 ? 1 : 0;
  }
  if (sum == 0) return load;
  load.max_over_mean =
      static_cast<double>(most) * static_cast<double>(tokens.size()) / static_cast<double>(sum);
  return load;
}

absl::StatusOr<std::unique_ptr<Model>> Model::Create(const ModelSection& section,
                                                     const ModelOptions& options, Stream& compute) {
  RETURN_IF_ERROR(Validate(section, options));
  ModelOptions full = options;
  if (full.part.segments.empty()) full.part = WholeModel(section);
  RETURN_IF_ERROR(ValidatePart(section, full));
  const Transformer measured(section, full, compute);
  ASSIGN_OR_RETURN(ArenaMemory memory, ArenaMemory::Map(measured.arena_bytes()));
  return std::make_unique<Transformer>(section, full, compute, std::move(memory), measured.sizes());
}

}  // namespace paceline
