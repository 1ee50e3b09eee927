#include "worker/huggingface/config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/run_file_schema.h"

namespace paceline::huggingface {
namespace {

using nlohmann::ordered_json;

bool HasSparseLayers(const ModelSection& model) {
  return model.num_hidden_layers > 0 && model.IsSparse(model.num_hidden_layers - 1);
}

// Gathers what keeps a model from being one of `class_name`.
class Obstacles {
 public:
  explicit Obstacles(std::string class_name) : class_name_(std::move(class_name)) {}

  void Add(bool is_in_the_way, const std::string& field, const std::string& value,
           const std::string& want) {
    if (!is_in_the_way) return;
    absl::StrAppend(&text_, text_.empty() ? "" : "\n", "[model] ", field, " = ", value, ": ",
                    class_name_, " ", want);
  }

  absl::Status ToStatus() const {
    return text_.empty() ? absl::OkStatus() : absl::InvalidArgumentError(text_);
  }

 private:
  const std::string class_name_;
  std::string text_;
};

absl::Status CheckLlama(const ModelSection& model) {
  Obstacles found(ClassName(Architecture::kLlama));
  found.Add(model.hidden_size % model.num_attention_heads != 0, "num_attention_heads",
            absl::StrCat(model.num_attention_heads),
            absl::StrCat("wants a divisor of hidden_size = ", model.hidden_size));
  return found.ToStatus();
}

absl::Status CheckMixtral(const ModelSection& model) {
  Obstacles found(ClassName(Architecture::kMixtral));
  found.Add(model.n_shared_experts != 0, "n_shared_experts", absl::StrCat(model.n_shared_experts),
            "has no shared experts; beside scoring_func = \"softmax\" only 0 can be exported");
  found.Add(model.first_k_dense_replace != 0, "first_k_dense_replace",
            absl::StrCat(model.first_k_dense_replace),
            "has no dense layers; beside scoring_func = \"softmax\" only 0 can be exported");
  found.Add(!model.norm_topk_prob, "norm_topk_prob", "false",
            "divides the chosen experts' weights by their sum; only true can be exported");
  found.Add(model.routed_scaling_factor != 1.0, "routed_scaling_factor",
            run_file::RealText(model.routed_scaling_factor),
            "does not scale the experts' sum; only 1.0 can be exported");
  found.Add(model.router_bias_update_rate > 0, "router_bias_update_rate",
            run_file::RealText(model.router_bias_update_rate),
            "has no balancing bias; a softmax model is exported when it was trained with 0");
  return found.ToStatus();
}

absl::Status CheckGlm4Moe(const ModelSection& model) {
  Obstacles found(ClassName(Architecture::kGlm4Moe));
  found.Add(model.n_routed_experts < 2, "n_routed_experts", absl::StrCat(model.n_routed_experts),
            "ranks groups of experts by their best two, so it wants at least 2");
  return found.ToStatus();
}

void AddMixtral(const ModelSection& model, ordered_json& json) {
  json["intermediate_size"] = model.moe_intermediate_size;
  json["num_local_experts"] = model.n_routed_experts;
  json["num_experts_per_tok"] = model.num_experts_per_tok;
  json["sliding_window"] = nullptr;
  json["output_router_logits"] = false;
}

void AddGlm4Moe(const ModelSection& model, ordered_json& json) {
  // A model without dense layers has no size for them, and transformers wants one.
  json["intermediate_size"] =
      model.intermediate_size > 0 ? model.intermediate_size : model.moe_intermediate_size;
  json["attention_bias"] = false;
  json["use_qk_norm"] = false;
  json["partial_rotary_factor"] = 1.0;
  json["rope_parameters"]["partial_rotary_factor"] = 1.0;
  json["moe_intermediate_size"] = model.moe_intermediate_size;
  json["n_routed_experts"] = model.n_routed_experts;
  json["n_shared_experts"] = model.n_shared_experts;
  json["num_experts_per_tok"] = model.num_experts_per_tok;
  json["first_k_dense_replace"] = model.first_k_dense_replace;
  json["n_group"] = 1;
  json["topk_group"] = 1;
  json["norm_topk_prob"] = model.norm_topk_prob;
  json["routed_scaling_factor"] = model.routed_scaling_factor;
  json["num_nextn_predict_layers"] = 0;
}

}  // namespace

std::string ClassName(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "LlamaForCausalLM";
    case Architecture::kMixtral:
      return "MixtralForCausalLM";
    case Architecture::kGlm4Moe:
      return "Glm4MoeForCausalLM";
  }
  return "";
}

absl::StatusOr<Architecture> ArchitectureOf(const ModelSection& model) {
  if (!HasSparseLayers(model)) {
    RETURN_IF_ERROR(CheckLlama(model));
    return Architecture::kLlama;
  }
  if (model.scoring_func == "softmax") {
    RETURN_IF_ERROR(CheckMixtral(model));
    return Architecture::kMixtral;
  }
  RETURN_IF_ERROR(CheckGlm4Moe(model));
  return Architecture::kGlm4Moe;
}

std::string ConfigJson(const Config& config, const std::string& dtype) {
  const ModelSection& model = config.model;
  ordered_json json = {
      {"architectures", {ClassName(config.architecture)}},
      {"model_type", ""},
      {"vocab_size", model.vocab_size},
      {"hidden_size", model.hidden_size},
      {"intermediate_size", model.intermediate_size},
      {"num_hidden_layers", model.num_hidden_layers},
      {"num_attention_heads", model.num_attention_heads},
      {"num_key_value_heads", model.num_key_value_heads},
      {"head_dim", model.head_dim},
      {"hidden_act", "silu"},
      {"max_position_embeddings", config.max_position_embeddings},
      // transformers takes at most 1, and uses it for new weights alone.
      {"initializer_range", std::min(model.initializer_range, 1.0)},
      {"rms_norm_eps", model.rms_norm_eps},
      // transformers 4 reads rope_theta, 5 rope_parameters.
      {"rope_theta", model.rope_theta},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", model.rope_theta}}},
      {"attention_dropout", 0.0},
      {"tie_word_embeddings", model.tie_word_embeddings},
      {"bos_token_id", nullptr},
      {"eos_token_id", nullptr},
      {"torch_dtype", dtype},
      {"use_cache", true},
  };
  if (config.eos_token_id) json["eos_token_id"] = *config.eos_token_id;
  switch (config.architecture) {
    case Architecture::kLlama:
      json["model_type"] = "llama";
      json["attention_bias"] = false;
      json["mlp_bias"] = false;
      break;
    case Architecture::kMixtral:
      json["model_type"] = "mixtral";
      AddMixtral(model, json);
      break;
    case Architecture::kGlm4Moe:
      json["model_type"] = "glm4_moe";
      AddGlm4Moe(model, json);
      break;
  }
  return json.dump(2) + "\n";
}

}  // namespace paceline::huggingface
