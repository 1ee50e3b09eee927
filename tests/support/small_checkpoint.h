// A committed checkpoint of a small model, written in two parts as two ranks would.
// Threading: pure functions.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/manifest.h"
#include "common/model_shape.h"
#include "common/run_file.h"
#include "tests/support/temp_folder.h"
#include "worker/huggingface/tensor_file.h"

namespace paceline {

inline ModelSection SmallDense() {
  return {.vocab_size = 32,
          .hidden_size = 16,
          .num_hidden_layers = 2,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 4,
          .intermediate_size = 24,
          .router_bias_update_rate = 0};
}

inline ModelSection SmallSoftmax() {
  ModelSection model = SmallDense();
  model.n_routed_experts = 4;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 8;
  return model;
}

inline ModelSection SmallSigmoid() {
  ModelSection model = SmallSoftmax();
  model.scoring_func = "sigmoid";
  model.n_shared_experts = 1;
  model.first_k_dense_replace = 1;
  model.router_bias_update_rate = 0.001;
  return model;
}

// Of element `index` of the tensor `name`: a number with a full mantissa.
inline float SmallValue(const std::string& name, std::int64_t index) {
  return static_cast<float>(name.size() + 7 * name[name.size() / 2]) / 3.0f -
         static_cast<float>(index) / 7.0f;
}

// Writes it to `folder`, in place of what was there; tensors of more than one dimension are halved
// by rows.
inline void WriteSmallCheckpoint(const std::string& folder, const ModelSection& model,
                                 std::int64_t step) {
  RunFile run_file;
  run_file.run.name = "small";
  run_file.model = model;
  run_file.data.train = {{.path = "/none"}};
  run_file.train = {.sequence_length = 16,
                    .global_batch_size = 1,
                    .micro_batch_size = 1,
                    .steps = 100,
                    .learning_rate = 1e-3};
  Manifest manifest;
  manifest.run_id = "small-run";
  manifest.step = step;
  manifest.sample = step;
  manifest.tokens = step * 16;
  manifest.run_file = ToToml(run_file);
  std::vector<TensorShape> tensors = ModelTensors(model);
  for (TensorShape& buffer : ModelStateBuffers(model)) tensors.push_back(std::move(buffer));
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  for (int rank = 0; rank < 2; ++rank) {
    std::vector<TensorSliceInfo> slices;
    for (const TensorShape& tensor : tensors) {
      const bool halved = tensor.shape.size() > 1;
      if (!halved && rank == 1) continue;
      TensorSliceInfo slice{.name = tensor.name, .dtype = "F32", .global_shape = tensor.shape};
      slice.start.assign(tensor.shape.size(), 0);
      slice.shape = tensor.shape;
      if (halved) {
        slice.shape[0] = tensor.shape[0] / 2;
        slice.start[0] = rank * slice.shape[0];
      }
      slices.push_back(std::move(slice));
    }
    auto file = huggingface::TensorFile::New(
        folder + "/rank-0000" + std::to_string(rank) + ".safetensors", slices, "paceline");
    PACELINE_CHECK(file.ok());
    for (const TensorSliceInfo& slice : slices) {
      std::int64_t row = 1;
      std::int64_t elements = 1;
      for (std::size_t i = 0; i < slice.shape.size(); ++i) {
        elements *= slice.shape[i];
        if (i > 0) row *= slice.shape[i];
      }
      std::vector<float> values;
      for (std::int64_t i = 0; i < elements; ++i) {
        values.push_back(SmallValue(slice.name, slice.start[0] * row + i));
      }
      PACELINE_CHECK((*file)->Append(values.data(), elements * 4).ok());
    }
    auto part = (*file)->Finish();
    PACELINE_CHECK(part.ok());
    manifest.parts.push_back(*std::move(part));
  }
  WriteWhole(folder + "/manifest.json", ToJson(manifest));
}

}  // namespace paceline
