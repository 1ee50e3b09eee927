#include "common/model_shape.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace paceline {
namespace {

ModelSection Llama2Of7B() {
  ModelSection model;
  model.vocab_size = 32000;
  model.hidden_size = 4096;
  model.num_hidden_layers = 32;
  model.num_attention_heads = 32;
  model.num_key_value_heads = 32;
  model.head_dim = 128;
  model.intermediate_size = 11008;
  return model;
}

ModelSection SmallSparse() {
  ModelSection model;
  model.vocab_size = 256;
  model.hidden_size = 128;
  model.num_hidden_layers = 4;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 32;
  model.intermediate_size = 384;
  model.n_routed_experts = 8;
  model.n_shared_experts = 1;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 96;
  model.first_k_dense_replace = 1;
  return model;
}

// Touvron et al. 2023, arXiv:2307.09288; the count is that of the published weights.
TEST(ModelShapeTest, Llama2Of7BHasItsPublishedNumberOfParameters) {
  EXPECT_EQ(SizeOfModel(Llama2Of7B()).parameters, 6'738'415'616);
}

// Jiang et al. 2023, arXiv:2310.06825: grouped queries, the count of the published weights.
TEST(ModelShapeTest, Mistral7BHasItsPublishedNumberOfParameters) {
  ModelSection model = Llama2Of7B();
  model.num_key_value_heads = 8;
  model.intermediate_size = 14336;
  EXPECT_EQ(SizeOfModel(model).parameters, 7'241'732'096);
}

// Jiang et al. 2024, arXiv:2401.04088: 46.7 billion, 12.9 billion of them active.
TEST(ModelShapeTest, Mixtral8x7BHasItsPublishedNumberOfParameters) {
  ModelSection model = Llama2Of7B();
  model.num_key_value_heads = 8;
  model.n_routed_experts = 8;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 14336;
  const ModelSize size = SizeOfModel(model);
  EXPECT_EQ(size.parameters, 46'702'792'704);
  EXPECT_NEAR(static_cast<double>(size.active_parameters) + 32000.0 * 4096.0, 12.9e9, 0.05e9);
}

TEST(ModelShapeTest, TensorsHaveUniqueNamesAndHuggingFacesShapes) {
  std::set<std::string> names;
  for (const TensorShape& tensor : ModelTensors(SmallSparse())) {
    EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
    EXPECT_EQ(tensor.weight_decay, tensor.shape.size() == 2) << tensor.name;
  }
  EXPECT_TRUE(names.contains("model.layers.0.mlp.gate_proj.weight"));
  EXPECT_TRUE(names.contains("model.layers.3.mlp.experts.7.down_proj.weight"));
  EXPECT_TRUE(names.contains("model.layers.1.mlp.shared_experts.up_proj.weight"));
  EXPECT_FALSE(names.contains("model.layers.0.mlp.gate.weight"));
  EXPECT_TRUE(names.contains("lm_head.weight"));
}

TEST(ModelShapeTest, TiedModelHasNoHeadOfItsOwn) {
  ModelSection model = SmallSparse();
  const ModelSize untied = SizeOfModel(model);
  model.tie_word_embeddings = true;
  const ModelSize tied = SizeOfModel(model);
  EXPECT_EQ(untied.parameters - tied.parameters, 256 * 128);
  EXPECT_EQ(untied.active_parameters, tied.active_parameters);
}

TEST(ModelShapeTest, BalancingBiasesBelongToSparseLayersAlone) {
  ModelSection model = SmallSparse();
  const std::vector<TensorShape> buffers = ModelStateBuffers(model);
  ASSERT_EQ(buffers.size(), 3u);
  EXPECT_EQ(buffers[0].name, "model.layers.1.mlp.gate.e_score_correction_bias");
  EXPECT_EQ(buffers[0].shape, std::vector<std::int64_t>{8});
  model.router_bias_update_rate = 0;
  EXPECT_TRUE(ModelStateBuffers(model).empty());
  EXPECT_TRUE(ModelStateBuffers(Llama2Of7B()).empty());
}

// By hand for the dense model: 6 FLOPs a matrix weight, and 6 * sequence a query channel.
TEST(ModelShapeTest, TrainingFlopsFollowTheFormula) {
  const ModelSection model = Llama2Of7B();
  const double matrices = 6'738'415'616.0 - 32000.0 * 4096 - 65 * 4096;
  EXPECT_DOUBLE_EQ(TrainingFlopsPerToken(model, 4096), 6 * matrices + 6.0 * 4096 * 32 * 4096);
}

}  // namespace
}  // namespace paceline
