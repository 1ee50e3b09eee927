// Layer is what a model is a list of: it maps the residual stream to the residual stream. A
// decoder layer of the literature is two of them, attention and feed-forward, each with the norm
// before it and the addition after it. Whoever holds a sub-range of the list holds a pipeline
// stage.
// Invariant: a layer allocates in its constructor and nowhere else, and its parameters are one
// contiguous range of the flat arrays.
// Threading: belongs to the step thread; kernels run on the stream of its context.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/run_file.h"
#include "worker/kernels/stream.h"
#include "worker/model/arena.h"
#include "worker/model/parameters.h"

namespace paceline {

// A matrix or vector of the model and where its gradient goes (null without training).
struct Weight {
  float* value = nullptr;
  float* gradient = nullptr;
};

// Lays parameters one after the other into the flat arrays.
class ParameterLayout {
 public:
  ParameterLayout() = default;  // measures: every weight is null
  ParameterLayout(float* weights, float* gradients) : weights_(weights), gradients_(gradients) {}

  Weight Add(const std::string& name, std::vector<std::int64_t> shape);

  // Elements laid out so far.
  std::int64_t elements() const { return elements_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

 private:
  float* weights_ = nullptr;
  float* gradients_ = nullptr;
  std::int64_t elements_ = 0;
  std::vector<Parameter> parameters_;
};

// What a layer is built from.
struct LayerContext {
  const ModelSection& section;
  std::int64_t rows_max;      // sequences of a micro-batch, at most
  std::int64_t sequence_max;  // tokens of a sequence, at most
  bool training;
  Stream& stream;
  ParameterLayout& parameters;
  Arena& saved;    // from a layer's forward to its backward (without training: to its end)
  Arena& scratch;  // within one Forward or Backward of one layer

  std::int64_t tokens_max() const { return rows_max * sequence_max; }
};

// The micro-batch at hand: at most the context's.
struct BatchShape {
  std::int64_t rows = 0;
  std::int64_t sequence = 0;

  std::int64_t tokens() const { return rows * sequence; }
};

class Layer {
 public:
  virtual ~Layer() = default;

  // output = input + f(norm(input)).  input, output: (tokens, hidden), apart.
  virtual void Forward(const BatchShape& shape, const float* input, float* output) = 0;

  // gradient: (tokens, hidden), in place from that of the output to that of the input. `input` is
  // that of the latest Forward. Weight gradients are added to what is there if `accumulate`, else
  // overwritten. Uses up what Forward kept.
  virtual void Backward(const BatchShape& shape, const float* input, float* gradient,
                        bool accumulate) = 0;
};

}  // namespace paceline
