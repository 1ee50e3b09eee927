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

// Decoder layers [first, end).
struct LayerRange {
  std::int64_t first = 0;
  std::int64_t end = 0;

  std::int64_t layers() const { return end - first; }
  bool operator==(const LayerRange&) const = default;
};

// The part of a model that one rank holds: some ranges of layers, and of every sparse layer in
// them a range of the routed experts. The range that begins at layer 0 has the embedding, the one
// that ends at the last layer has the final norm and the output matrix.
struct ModelPart {
  std::vector<LayerRange> segments;  // ascending
  std::int64_t first_expert = 0;
  std::int64_t end_expert = 0;

  std::int64_t experts() const { return end_expert - first_expert; }
};
ModelPart WholeModel(const ModelSection& model);

// Every trained tensor of the part, in Hugging Face's order (embedding first).
std::vector<TensorShape> ModelTensors(const ModelSection& model, const ModelPart& part);
std::vector<TensorShape> ModelTensors(const ModelSection& model);  // of the whole model

// Balancing biases of the part's sparse layers ("...mlp.gate.e_score_correction_bias"), whole:
// every rank that routes to a layer holds them. Empty where the model has none.
std::vector<TensorShape> ModelStateBuffers(const ModelSection& model, const ModelPart& part);
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
// The same of one decoder layer, and of the output matrix.
double LayerFlopsPerToken(const ModelSection& model, std::int64_t layer, std::int64_t sequence);
double HeadFlopsPerToken(const ModelSection& model);

}  // namespace paceline
