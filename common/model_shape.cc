#include "common/model_shape.h"

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

// The three matrices of one SwiGLU: down(silu(gate x) * up x).
void AddSwiGlu(const std::string& prefix, std::int64_t hidden, std::int64_t intermediate,
               std::vector<TensorShape>& tensors) {
  tensors.push_back({absl::StrCat(prefix, ".gate_proj.weight"), {intermediate, hidden}, true});
  tensors.push_back({absl::StrCat(prefix, ".up_proj.weight"), {intermediate, hidden}, true});
  tensors.push_back({absl::StrCat(prefix, ".down_proj.weight"), {hidden, intermediate}, true});
}

void AddAttention(const ModelSection& model, const std::string& layer,
                  std::vector<TensorShape>& tensors) {
  const std::int64_t query = model.num_attention_heads * model.head_dim;
  const std::int64_t key_value = model.num_key_value_heads * model.head_dim;
  const std::int64_t hidden = model.hidden_size;
  tensors.push_back({absl::StrCat(layer, ".self_attn.q_proj.weight"), {query, hidden}, true});
  tensors.push_back({absl::StrCat(layer, ".self_attn.k_proj.weight"), {key_value, hidden}, true});
  tensors.push_back({absl::StrCat(layer, ".self_attn.v_proj.weight"), {key_value, hidden}, true});
  tensors.push_back({absl::StrCat(layer, ".self_attn.o_proj.weight"), {hidden, query}, true});
}

void AddSparse(const ModelSection& model, const ModelPart& part, const std::string& mlp,
               std::vector<TensorShape>& tensors) {
  for (std::int64_t expert = part.first_expert; expert < part.end_expert; ++expert) {
    AddSwiGlu(absl::StrCat(mlp, ".experts.", expert), model.hidden_size,
              model.moe_intermediate_size, tensors);
  }
  tensors.push_back(
      {absl::StrCat(mlp, ".gate.weight"), {model.n_routed_experts, model.hidden_size}, true});
  if (model.n_shared_experts > 0) {
    AddSwiGlu(absl::StrCat(mlp, ".shared_experts"), model.hidden_size,
              model.n_shared_experts * model.moe_intermediate_size, tensors);
  }
}

std::string LayerName(std::int64_t layer) { return absl::StrCat("model.layers.", layer); }

void AddLayer(const ModelSection& model, const ModelPart& part, std::int64_t layer,
              std::vector<TensorShape>& tensors) {
  const std::string name = LayerName(layer);
  AddAttention(model, name, tensors);
  if (model.IsSparse(layer)) {
    AddSparse(model, part, absl::StrCat(name, ".mlp"), tensors);
  } else {
    AddSwiGlu(absl::StrCat(name, ".mlp"), model.hidden_size, model.intermediate_size, tensors);
  }
  tensors.push_back({absl::StrCat(name, ".input_layernorm.weight"), {model.hidden_size}, false});
  tensors.push_back(
      {absl::StrCat(name, ".post_attention_layernorm.weight"), {model.hidden_size}, false});
}

}  // namespace

std::int64_t TensorShape::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) product *= extent;
  return product;
}

ModelPart WholeModel(const ModelSection& model) {
  return {.segments = {{0, model.num_hidden_layers}},
          .first_expert = 0,
          .end_expert = model.n_routed_experts};
}

std::vector<TensorShape> ModelTensors(const ModelSection& model, const ModelPart& part) {
  std::vector<TensorShape> tensors;
  for (const LayerRange& segment : part.segments) {
    if (segment.first == 0) {
      tensors.push_back({"model.embed_tokens.weight", {model.vocab_size, model.hidden_size}, true});
    }
    for (std::int64_t layer = segment.first; layer < segment.end; ++layer) {
      AddLayer(model, part, layer, tensors);
    }
    if (segment.end != model.num_hidden_layers) continue;
    tensors.push_back({"model.norm.weight", {model.hidden_size}, false});
    if (!model.tie_word_embeddings) {
      tensors.push_back({"lm_head.weight", {model.vocab_size, model.hidden_size}, true});
    }
  }
  return tensors;
}

std::vector<TensorShape> ModelTensors(const ModelSection& model) {
  return ModelTensors(model, WholeModel(model));
}

std::vector<TensorShape> ModelStateBuffers(const ModelSection& model, const ModelPart& part) {
  std::vector<TensorShape> buffers;
  if (model.router_bias_update_rate <= 0) return buffers;
  for (const LayerRange& segment : part.segments) {
    for (std::int64_t layer = segment.first; layer < segment.end; ++layer) {
      if (!model.IsSparse(layer)) continue;
      buffers.push_back({absl::StrCat(LayerName(layer), ".mlp.gate.e_score_correction_bias"),
                         {model.n_routed_experts},
                         false});
    }
  }
  return buffers;
}

std::vector<TensorShape> ModelStateBuffers(const ModelSection& model) {
  return ModelStateBuffers(model, WholeModel(model));
}

ModelSize SizeOfModel(const ModelSection& model) {
  ModelSize size;
  for (const TensorShape& tensor : ModelTensors(model)) size.parameters += tensor.elements();
  const std::int64_t embedding = model.vocab_size * model.hidden_size;
  const std::int64_t expert = 3 * model.hidden_size * model.moe_intermediate_size;
  size.active_parameters = size.parameters;
  // A tied embedding stays: the token passes it as the output matrix.
  if (!model.tie_word_embeddings) size.active_parameters -= embedding;
  for (std::int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    if (!model.IsSparse(layer)) continue;
    size.active_parameters -= (model.n_routed_experts - model.num_experts_per_tok) * expert;
  }
  return size;
}

double LayerFlopsPerToken(const ModelSection& model, std::int64_t layer, std::int64_t sequence) {
  const std::int64_t hidden = model.hidden_size;
  std::int64_t weights =
      2 * hidden * model.head_dim * (model.num_attention_heads + model.num_key_value_heads);
  if (model.IsSparse(layer)) {
    weights += 3 * hidden * model.moe_intermediate_size *
               (model.num_experts_per_tok + model.n_shared_experts);
    weights += model.n_routed_experts * hidden;
  } else {
    weights += 3 * hidden * model.intermediate_size;
  }
  // Two products of 2 * sequence FLOPs a channel, half of them masked, times 3 for the backward.
  const double attention = 3.0 * 2.0 * static_cast<double>(sequence) *
                           static_cast<double>(model.num_attention_heads * model.head_dim);
  return 6.0 * static_cast<double>(weights) + attention;
}

double HeadFlopsPerToken(const ModelSection& model) {
  return 6.0 * static_cast<double>(model.vocab_size * model.hidden_size);
}

double TrainingFlopsPerToken(const ModelSection& model, std::int64_t sequence) {
  double flops = HeadFlopsPerToken(model);
  for (std::int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    flops += LayerFlopsPerToken(model, layer, sequence);
  }
  return flops;
}

}  // namespace paceline
