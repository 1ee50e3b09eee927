// The tensors of an exported model: what each is called in Hugging Face's files and in Paceline's.
// Invariant: every tensor that Paceline trains or keeps stands in the list once; equal models give
// equal lists.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/run_file.h"
#include "worker/huggingface/config.h"

namespace paceline::huggingface {

struct Tensor {
  std::string name;
  // In a checkpoint of Paceline. Empty: there is none, and zeros stand for it (the correction bias
  // of a model that was trained without one; shared experts of no width).
  std::string own_name;
  std::vector<std::int64_t> shape;
  bool keep_float32 = false;  // whatever the other weights are: transformers asks for it

  std::int64_t elements() const;
};

std::vector<Tensor> TensorsOf(Architecture architecture, const ModelSection& model);

// A lower bound of what TensorsOf lists, without listing it.
std::int64_t FewestTensors(const ModelSection& model);

}  // namespace paceline::huggingface
