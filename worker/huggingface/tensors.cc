#include "worker/huggingface/tensors.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model_shape.h"

namespace paceline::huggingface {
namespace {

// model.layers.3.mlp.experts.5.up_proj.weight is
// model.layers.3.block_sparse_moe.experts.5.w3.weight.
std::string MixtralName(std::string name) {
  constexpr std::pair<const char*, const char*> kRenamed[] = {
      {".mlp.", ".block_sparse_moe."},
      {".gate_proj.", ".w1."},
      {".up_proj.", ".w3."},
      {".down_proj.", ".w2."},
  };
  for (const auto& [own, other] : kRenamed) {
    const std::size_t at = name.find(own);
    if (at != std::string::npos) name.replace(at, std::string(own).size(), other);
  }
  return name;
}

// What Glm4MoeForCausalLM has in a sparse layer and this model does not.
void AddAbsent(const ModelSection& model, std::vector<Tensor>& tensors) {
  for (std::int64_t layer = model.first_k_dense_replace; layer < model.num_hidden_layers; ++layer) {
    const std::string mlp = absl::StrCat("model.layers.", layer, ".mlp");
    if (model.n_shared_experts == 0) {
      const std::string shared = mlp + ".shared_experts";
      tensors.push_back({shared + ".gate_proj.weight", "", {0, model.hidden_size}});
      tensors.push_back({shared + ".up_proj.weight", "", {0, model.hidden_size}});
      tensors.push_back({shared + ".down_proj.weight", "", {model.hidden_size, 0}});
    }
    if (model.router_bias_update_rate <= 0) {
      tensors.push_back({mlp + ".gate.e_score_correction_bias",
                         "",
                         {model.n_routed_experts},
                         /*keep_float32=*/true});
    }
  }
}

}  // namespace

std::int64_t Tensor::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) product *= extent;
  return product;
}

std::vector<Tensor> TensorsOf(Architecture architecture, const ModelSection& model) {
  std::vector<Tensor> tensors;
  for (TensorShape& own : ModelTensors(model)) {
    std::string name = architecture == Architecture::kMixtral ? MixtralName(own.name) : own.name;
    tensors.push_back({std::move(name), std::move(own.name), std::move(own.shape)});
  }
  if (architecture != Architecture::kGlm4Moe) return tensors;
  for (TensorShape& own : ModelStateBuffers(model)) {
    tensors.push_back({own.name, own.name, std::move(own.shape), /*keep_float32=*/true});
  }
  AddAbsent(model, tensors);
  return tensors;
}

std::int64_t FewestTensors(const ModelSection& model) {
  const bool sparse = model.n_routed_experts > 0;
  const std::int64_t sparse_layers =
      sparse ? model.num_hidden_layers - model.first_k_dense_replace : 0;
  return model.num_hidden_layers + sparse_layers * 3 * model.n_routed_experts;
}

}  // namespace paceline::huggingface
