// What a model of a given run-file section consists of: parameters by name and shape, and the
// formulas for size, memory and FLOPs that planner, worker and command line share.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/run_file.h"

namespace paceline {

struct TensorShape {
  std::string name;  // Hugging Face's name (GLM-4 MoE's and Llama's conventions)
  std::vector<std::int64_t> shape;
  bool weight_decay = false;  // matrices and embeddings, not norms

  std::int64_t elements() const;
};

// Every trained tensor of the model, in Hugging Face's order (embedding first).
std::vector<TensorShape> ModelTensors(const ModelSection& model);

// Balancing biases of the sparse layers ("...mlp.gate.e_score_correction_bias"); empty where
// the model has none.
std::vector<TensorShape> ModelStateBuffers(const ModelSection& model);

struct ModelSize {
  std::int64_t parameters = 0;         // trained, all
  std::int64_t active_parameters = 0;  // those a token passes through, embedding lookup excluded
};
ModelSize SizeOfModel(const ModelSection& model);

// Training FLOPs a token at sequence length `sequence`: 6 a weight of every matrix the token
// passes, plus attention's two products, causal (half of the square), forward and backward
// (times 3). After Narayanan et al. 2021, arXiv:2104.04473, section 5.1, without recomputation.
double TrainingFlopsPerToken(const ModelSection& model, std::int64_t sequence);

}  // namespace paceline
