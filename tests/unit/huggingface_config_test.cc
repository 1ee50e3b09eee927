#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "nlohmann/json.hpp"
#include "worker/huggingface/config.h"
#include "worker/huggingface/tensors.h"

namespace paceline::huggingface {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

ModelSection Dense() {
  return {.vocab_size = 64,
          .hidden_size = 32,
          .num_hidden_layers = 2,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 8,
          .intermediate_size = 48,
          .router_bias_update_rate = 0};
}

ModelSection Softmax() {
  ModelSection model = Dense();
  model.n_routed_experts = 4;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 16;
  return model;
}

ModelSection Sigmoid() {
  ModelSection model = Softmax();
  model.scoring_func = "sigmoid";
  model.n_shared_experts = 1;
  model.first_k_dense_replace = 1;
  model.routed_scaling_factor = 2.5;
  model.router_bias_update_rate = 0.001;
  return model;
}

std::string Refusal(const ModelSection& model) {
  const auto architecture = ArchitectureOf(model);
  EXPECT_EQ(architecture.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(architecture.status().message());
}

std::set<std::string> Names(Architecture architecture, const ModelSection& model) {
  std::set<std::string> names;
  for (const Tensor& tensor : TensorsOf(architecture, model)) {
    EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
  }
  return names;
}

TEST(HuggingFaceConfigTest, EachKindOfModelHasItsClass) {
  EXPECT_EQ(*ArchitectureOf(Dense()), Architecture::kLlama);
  EXPECT_EQ(*ArchitectureOf(Softmax()), Architecture::kMixtral);
  EXPECT_EQ(*ArchitectureOf(Sigmoid()), Architecture::kGlm4Moe);
  ModelSection no_sparse_layer = Sigmoid();
  no_sparse_layer.first_k_dense_replace = no_sparse_layer.num_hidden_layers;
  EXPECT_EQ(*ArchitectureOf(no_sparse_layer), Architecture::kLlama);
}

TEST(HuggingFaceConfigTest, EveryFieldInTheWayIsNamed) {
  ModelSection model = Softmax();
  model.n_shared_experts = 1;
  EXPECT_THAT(Refusal(model), AllOf(HasSubstr("[model] n_shared_experts = 1: MixtralForCausalLM"),
                                    Not(HasSubstr("norm_topk_prob"))));
  model = Softmax();
  model.first_k_dense_replace = 1;
  model.norm_topk_prob = false;
  model.routed_scaling_factor = 1.5;
  model.router_bias_update_rate = 0.001;
  EXPECT_THAT(Refusal(model),
              AllOf(HasSubstr("first_k_dense_replace = 1"), HasSubstr("norm_topk_prob = false"),
                    HasSubstr("routed_scaling_factor = 1.5"),
                    HasSubstr("router_bias_update_rate = 0.001")));
  model = Dense();
  model.num_attention_heads = 3;
  EXPECT_THAT(Refusal(model), HasSubstr("num_attention_heads = 3"));
  model = Sigmoid();
  model.n_routed_experts = model.num_experts_per_tok = 1;
  EXPECT_THAT(Refusal(model), HasSubstr("n_routed_experts = 1"));
}

TEST(HuggingFaceConfigTest, TensorsHaveTheNamesOfTransformers) {
  const std::set<std::string> mixtral = Names(Architecture::kMixtral, Softmax());
  for (const char* name :
       {"model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.1.block_sparse_moe.experts.3.w1.weight", "model.norm.weight",
        "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"}) {
    EXPECT_TRUE(mixtral.contains(name)) << name;
  }
  for (const Tensor& tensor : TensorsOf(Architecture::kMixtral, Softmax())) {
    if (tensor.name.ends_with("experts.3.w1.weight")) {
      EXPECT_THAT(tensor.own_name, HasSubstr("mlp.experts.3.gate_proj.weight"));
    }
    if (tensor.name.ends_with("experts.3.w2.weight")) {
      EXPECT_THAT(tensor.own_name, HasSubstr("mlp.experts.3.down_proj.weight"));
    }
    if (tensor.name.ends_with("experts.3.w3.weight")) {
      EXPECT_THAT(tensor.own_name, HasSubstr("mlp.experts.3.up_proj.weight"));
    }
  }
  const std::set<std::string> glm = Names(Architecture::kGlm4Moe, Sigmoid());
  EXPECT_TRUE(glm.contains("model.layers.1.mlp.gate.e_score_correction_bias"));
  EXPECT_FALSE(glm.contains("model.layers.0.mlp.gate.e_score_correction_bias"));
  EXPECT_TRUE(glm.contains("model.layers.1.mlp.shared_experts.up_proj.weight"));
  EXPECT_GE(std::ssize(glm), FewestTensors(Sigmoid()));
  EXPECT_GE(std::ssize(mixtral), FewestTensors(Softmax()));
}

TEST(HuggingFaceConfigTest, WhatGlm4MoeHasAndTheModelHasNotIsZeros) {
  ModelSection model = Sigmoid();
  model.router_bias_update_rate = 0;
  model.n_shared_experts = 0;
  std::int64_t zeros = 0;
  for (const Tensor& tensor : TensorsOf(Architecture::kGlm4Moe, model)) {
    if (!tensor.own_name.empty()) continue;
    ++zeros;
    EXPECT_EQ(tensor.elements(), tensor.name.ends_with("bias") ? model.n_routed_experts : 0);
  }
  EXPECT_EQ(zeros, 4);
}

TEST(HuggingFaceConfigTest, WrittenConfigsReadBackAsTheSameModel) {
  for (ModelSection model : {Dense(), Softmax(), Sigmoid()}) {
    model.rope_theta = 12345.5;
    model.rms_norm_eps = 3e-6;
    const Architecture architecture = *ArchitectureOf(model);
    const Config config{
        .architecture = architecture, .model = model, .max_position_embeddings = 99};
    const auto read = ParseConfig(ConfigJson(config, "float32"));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->architecture, architecture);
    EXPECT_EQ(read->max_position_embeddings, 99);
    // What a Mixtral calls intermediate_size is the experts'.
    if (architecture == Architecture::kMixtral) model.intermediate_size = 0;
    if (architecture == Architecture::kLlama) {
      model.router_bias_update_rate = read->model.router_bias_update_rate;
    }
    EXPECT_EQ(ConfigJson({.architecture = architecture, .model = read->model}, "float32"),
              ConfigJson({.architecture = architecture, .model = model}, "float32"));
    EXPECT_EQ(read->model.rope_theta, 12345.5);
    EXPECT_EQ(read->model.router_bias_update_rate, model.router_bias_update_rate);
  }
}

struct Edit {
  const char* field;
  json value;  // discarded: the field is left out
  const char* complaint;
};

void ExpectRefused(const ModelSection& model, const std::vector<Edit>& edits) {
  const Config config{
      .architecture = *ArchitectureOf(model), .model = model, .max_position_embeddings = 64};
  for (const Edit& edit : edits) {
    json edited = json::parse(ConfigJson(config, "float32"));
    if (edit.value.is_discarded()) {
      edited.erase(edit.field);
    } else {
      edited[edit.field] = edit.value;
    }
    const auto read = ParseConfig(edited.dump());
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << edit.field;
    EXPECT_THAT(std::string(read.status().message()), HasSubstr(edit.complaint));
  }
}

TEST(HuggingFaceConfigTest, BadFieldsAreNamedWithTheirValue) {
  const json none(json::value_t::discarded);
  ExpectRefused(Dense(),
                {{"model_type", "mistral", "model_type = \"mistral\": must be \"llama\""},
                 {"model_type", none, "model_type is missing"},
                 {"hidden_size", 40, "hidden_size = 40: must be a multiple of 16"},
                 {"hidden_size", -16, "hidden_size = -16: must be an integer from 16"},
                 {"hidden_size", 1e300, "hidden_size = 1e+300"},
                 {"hidden_size", UINT64_MAX, "hidden_size = 18446744073709551615"},
                 {"vocab_size", none, "vocab_size is missing"},
                 {"num_hidden_layers", 1 << 20, "num_hidden_layers = 1048576"},
                 {"num_key_value_heads", 3, "num_key_value_heads = 3: must divide"},
                 {"head_dim", 7, "head_dim = 7: must be an even"},
                 {"rms_norm_eps", "small", "rms_norm_eps = \"small\": must be a number"},
                 {"tie_word_embeddings", 1, "tie_word_embeddings = 1: must be true or false"},
                 {"hidden_act", "gelu", "hidden_act = \"gelu\": must be \"silu\""},
                 {"attention_bias", true, "attention_bias = true: must be false"},
                 {"rope_scaling", {{"rope_type", "llama3"}}, "rope_scaling.rope_type = \"llama3\""},
                 {"rope_parameters", {{"rope_theta", 0}}, "rope_parameters.rope_theta = 0"},
                 {"quantization_config", {{"bits", 4}}, "quantization_config"}});
  ExpectRefused(Softmax(), {{"sliding_window", 16, "sliding_window = 16: must be null"},
                            {"num_experts_per_tok", 5, "num_experts_per_tok = 5: must be at most"},
                            {"num_local_experts", 1 << 20, "num_local_experts = 1048576"}});
  ExpectRefused(Sigmoid(), {{"use_qk_norm", true, "use_qk_norm = true: must be false"},
                            {"n_group", 2, "n_group = 2: must be 1"},
                            {"topk_group", 2, "topk_group = 2: must be 1"},
                            {"first_k_dense_replace", 3, "first_k_dense_replace = 3"},
                            {"norm_topk_prob", "yes", "norm_topk_prob = \"yes\""},
                            {"rope_parameters",
                             {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.5}},
                             "partial_rotary_factor = 0.5: must be 1.0"}});
}

// GLM-4 MoE turns half of a head where its config is silent.
TEST(HuggingFaceConfigTest, Glm4MoeWithoutARotaryFactorIsRefused) {
  json config = json::parse(
      ConfigJson({.architecture = Architecture::kGlm4Moe, .model = Sigmoid()}, "float32"));
  config["max_position_embeddings"] = 64;
  ASSERT_TRUE(ParseConfig(config.dump()).ok());
  config.erase("partial_rotary_factor");
  config["rope_parameters"].erase("partial_rotary_factor");
  EXPECT_THAT(std::string(ParseConfig(config.dump()).status().message()),
              HasSubstr("partial_rotary_factor = 0.5"));
}

TEST(HuggingFaceConfigTest, WhatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "{", "null", "{\"model_type\": []}"}) {
    EXPECT_EQ(ParseConfig(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace paceline::huggingface
