#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/run_file_schema.h"
#include "worker/huggingface/config.h"

namespace paceline::huggingface {
namespace {

using nlohmann::json;

// What a field may be; its default where the file is silent.
struct Integers {
  std::int64_t minimum = 0;
  std::int64_t maximum = 0;
  std::optional<std::int64_t> fallback;
};

struct Reals {
  double minimum = 0;
  double maximum = 0;
  std::optional<double> fallback;
};

std::string Shown(const json& value) {
  constexpr std::size_t kShownMax = 80;
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kShownMax) text = text.substr(0, kShownMax) + "...";
  return text;
}

// Reads the fields of one object and keeps the first error.
class Fields {
 public:
  // `prefix`: "rope_parameters.", or "".
  Fields(const json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

  // Null where the field is missing or null.
  const json* Find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  std::int64_t Integer(const std::string& key, const Integers& may_be) {
    const json* value = Find(key);
    if (value == nullptr && may_be.fallback) return *may_be.fallback;
    // An unsigned number beyond int64 is as far out of range as any.
    const bool is_integer =
        value != nullptr && value->is_number_integer() &&
        (!value->is_number_unsigned() || value->get<std::uint64_t>() <= INT64_MAX);
    const std::int64_t number = is_integer ? value->get<std::int64_t>() : 0;
    if (!is_integer || number < may_be.minimum || number > may_be.maximum) {
      Fail(key, absl::StrCat("must be an integer from ", may_be.minimum, " to ", may_be.maximum));
      return may_be.minimum;
    }
    return number;
  }

  double Real(const std::string& key, const Reals& may_be) {
    const json* value = Find(key);
    if (value == nullptr && may_be.fallback) return *may_be.fallback;
    const double number = value != nullptr && value->is_number() ? value->get<double>() : NAN;
    if (number >= may_be.minimum && number <= may_be.maximum) return number;
    Fail(key, "must be a number from " + run_file::RealText(may_be.minimum) + " to " +
                  run_file::RealText(may_be.maximum));
    return may_be.minimum;
  }

  bool Flag(const std::string& key, bool fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (value->is_boolean()) return value->get<bool>();
    Fail(key, "must be true or false");
    return fallback;
  }

  std::string Text(const std::string& key) {
    const json* value = Find(key);
    if (value != nullptr && value->is_string()) return value->get<std::string>();
    Fail(key, "must be a text");
    return "";
  }

  // The field is missing, null, or one thing alone.
  void MustBe(const std::string& key, const json& only) {
    const json* value = Find(key);
    if (value != nullptr && *value != only) Fail(key, "must be " + Shown(only));
  }

  void MustBeNull(const std::string& key, const std::string& why) {
    if (Find(key) != nullptr) Fail(key, why);
  }

  void Fail(const std::string& key, const std::string& want) {
    const json* value = Find(key);
    Keep(absl::InvalidArgumentError(absl::StrCat(
        "config.json: ", prefix_, key, value == nullptr ? " is missing" : " = " + Shown(*value),
        value == nullptr ? "; it " : ": ", want)));
  }

  void Keep(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  const absl::Status& status() const { return status_; }

 private:
  const json& object_;
  const std::string prefix_;
  absl::Status status_;
};

// transformers 5 has rope_parameters, 4 has rope_theta and rope_scaling.
double RopeTheta(Fields& fields, double fallback, double partial_rotary_factor) {
  constexpr Reals kTheta{1, 1e12};
  double theta = fields.Real("rope_theta", {kTheta.minimum, kTheta.maximum, fallback});
  double turned = fields.Real("partial_rotary_factor", {0, 1, partial_rotary_factor});
  for (const std::string key : {"rope_parameters", "rope_scaling"}) {
    const json* value = fields.Find(key);
    if (value == nullptr) continue;
    if (!value->is_object()) {
      fields.Fail(key, "must be an object or null");
      continue;
    }
    Fields rope(*value, key + ".");
    rope.MustBe("rope_type", "default");
    rope.MustBe("type", "default");
    theta = rope.Real("rope_theta", {kTheta.minimum, kTheta.maximum, theta});
    turned = rope.Real("partial_rotary_factor", {0, 1, turned});
    fields.Keep(rope.status());
  }
  if (turned != 1.0) {
    fields.Keep(absl::InvalidArgumentError(
        "config.json: partial_rotary_factor = " + run_file::RealText(turned) +
        ": must be 1.0; Paceline turns whole heads"));
  }
  return theta;
}

void ReadAttention(Fields& fields, ModelSection& model) {
  constexpr std::int64_t kHiddenMultiple = 16;
  model.hidden_size = fields.Integer("hidden_size", {kHiddenMultiple, 1 << 17});
  model.num_attention_heads = fields.Integer("num_attention_heads", {1, 1 << 10});
  const std::int64_t heads = model.num_attention_heads;
  model.num_key_value_heads = fields.Integer("num_key_value_heads", {1, 1 << 10, heads});
  model.head_dim = fields.Integer("head_dim", {2, 1 << 10, model.hidden_size / heads});
  if (!fields.status().ok()) return;
  if (model.hidden_size % kHiddenMultiple != 0) {
    fields.Fail("hidden_size", absl::StrCat("must be a multiple of ", kHiddenMultiple));
  }
  if (heads % model.num_key_value_heads != 0) {
    fields.Fail("num_key_value_heads", absl::StrCat("must divide num_attention_heads = ", heads));
  }
  if (model.head_dim < 2 || model.head_dim % 2 != 0 ||
      (fields.Find("head_dim") == nullptr && model.hidden_size % heads != 0)) {
    fields.Fail("head_dim", "must be an even integer; rotary embedding turns pairs");
  }
}

void ReadMixtral(Fields& fields, std::int64_t max_position_embeddings, ModelSection& model) {
  model.moe_intermediate_size = fields.Integer("intermediate_size", {1, 1 << 17});
  model.n_routed_experts = fields.Integer("num_local_experts", {1, 1 << 12});
  model.num_experts_per_tok = fields.Integer("num_experts_per_tok", {1, 64});
  model.scoring_func = "softmax";
  model.router_bias_update_rate = 0;
  const json* window = fields.Find("sliding_window");
  // A window as long as the longest sequence hides nothing.
  if (window != nullptr &&
      (!window->is_number_unsigned() ||
       window->get<std::uint64_t>() < static_cast<std::uint64_t>(max_position_embeddings))) {
    fields.Fail("sliding_window", "must be null; Paceline attends to all that came before");
  }
}

void ReadGlm4Moe(Fields& fields, ModelSection& model) {
  model.intermediate_size = fields.Integer("intermediate_size", {1, 1 << 20});
  model.moe_intermediate_size = fields.Integer("moe_intermediate_size", {1, 1 << 17});
  model.n_routed_experts = fields.Integer("n_routed_experts", {2, 1 << 12});
  model.n_shared_experts = fields.Integer("n_shared_experts", {0, 64});
  model.num_experts_per_tok = fields.Integer("num_experts_per_tok", {1, 64});
  model.first_k_dense_replace =
      fields.Integer("first_k_dense_replace", {0, model.num_hidden_layers});
  model.scoring_func = "sigmoid";
  model.norm_topk_prob = fields.Flag("norm_topk_prob", true);
  model.routed_scaling_factor = fields.Real("routed_scaling_factor", {1e-6, 1e6, 1.0});
  fields.MustBe("use_qk_norm", false);
  fields.MustBe("n_group", 1);
  fields.MustBe("topk_group", 1);
}

absl::StatusOr<Architecture> ArchitectureNamed(const std::string& model_type) {
  if (model_type == "llama") return Architecture::kLlama;
  if (model_type == "mixtral") return Architecture::kMixtral;
  if (model_type == "glm4_moe") return Architecture::kGlm4Moe;
  return absl::InvalidArgumentError("config.json: model_type = " + Shown(model_type) +
                                    ": must be \"llama\", \"mixtral\" or \"glm4_moe\"");
}

}  // namespace

absl::StatusOr<Config> ParseConfig(const std::string& text) {
  const json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return absl::InvalidArgumentError("config.json: is not a JSON object");
  Fields fields(parsed, "");
  Config config;
  const std::string model_type = fields.Text("model_type");
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(config.architecture, ArchitectureNamed(model_type));
  const bool mixtral = config.architecture == Architecture::kMixtral;
  const bool glm4_moe = config.architecture == Architecture::kGlm4Moe;

  ModelSection& model = config.model;
  config.max_position_embeddings = fields.Integer("max_position_embeddings", {1, 1 << 30, 2048});
  model.vocab_size = fields.Integer("vocab_size", {2, 1 << 24});
  model.num_hidden_layers = fields.Integer("num_hidden_layers", {1, 1 << 10});
  ReadAttention(fields, model);
  model.rms_norm_eps = fields.Real("rms_norm_eps", {1e-30, 1, mixtral || glm4_moe ? 1e-5 : 1e-6});
  model.initializer_range = fields.Real("initializer_range", {1e-30, 10, 0.02});
  model.tie_word_embeddings = fields.Flag("tie_word_embeddings", false);
  model.rope_theta = RopeTheta(fields, mixtral ? 1e6 : 1e4, glm4_moe ? 0.5 : 1.0);
  fields.MustBe("hidden_act", "silu");
  fields.MustBe("attention_bias", false);
  fields.MustBe("mlp_bias", false);
  fields.MustBeNull("quantization_config", "quantized weights cannot be imported");
  if (mixtral) {
    ReadMixtral(fields, config.max_position_embeddings, model);
  } else if (glm4_moe) {
    ReadGlm4Moe(fields, model);
  } else {
    model.intermediate_size = fields.Integer("intermediate_size", {1, 1 << 20});
  }
  if (model.num_experts_per_tok > model.n_routed_experts) {
    fields.Fail("num_experts_per_tok",
                absl::StrCat("must be at most the number of experts, ", model.n_routed_experts));
  }
  RETURN_IF_ERROR(fields.status());
  return config;
}

}  // namespace paceline::huggingface
