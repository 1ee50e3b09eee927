// Layer is what a model is a list of: it maps the residual stream to the residual stream. A
// decoder layer of the literature is two of them, attention and feed-forward, each with the norm
// before it and the addition after it. Whoever holds a sub-range of the list holds a pipeline
// stage.
//
// A layer is references to weights plus the activations of one micro-batch in flight. For another
// micro-batch in flight at the same time it is built once more over the same weights.
// Invariant: a layer allocates in its constructor and nowhere else, and its parameters are one
// contiguous range of each region of the flat arrays.
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

// Elements of each region of the flat arrays.
struct RegionElements {
  std::int64_t replicated = 0;
  std::int64_t expert = 0;
};

// Lays parameters one after the other into the two regions of the flat arrays. A copy taken
// before a layer is built lays the same layer's parameters out at the same places again.
class ParameterLayout {
 public:
  ParameterLayout() = default;  // measures: every weight is null
  // The experts' region begins at `expert_start`.
  ParameterLayout(float* weights, float* gradients, std::int64_t expert_start)
      : weights_(weights), gradients_(gradients), expert_start_(expert_start) {}

  Weight Add(const std::string& name, std::vector<std::int64_t> shape, bool expert = false);

  RegionElements elements() const { return elements_; }  // laid out so far
  std::int64_t expert_start() const { return expert_start_; }
  std::vector<Parameter> parameters() const;  // by ascending offset

 private:
  float* weights_ = nullptr;
  float* gradients_ = nullptr;
  std::int64_t expert_start_ = 0;
  RegionElements elements_;
  std::vector<Parameter> replicated_;
  std::vector<Parameter> expert_;
};

// What a layer is built from.
struct LayerContext {
  const ModelSection& section;
  std::int64_t first_expert;  // of the routed experts, those held: [first_expert, end_expert)
  std::int64_t end_expert;
  std::int64_t rows_max;      // sequences of a micro-batch, at most
  std::int64_t sequence_max;  // tokens of a sequence, at most
  bool training;
  Stream& stream;
  ParameterLayout& parameters;
  Arena& saved;    // from a layer's Forward to its BackwardWeights (without training: scratch)
  Arena& between;  // from its BackwardInput to its BackwardWeights
  Arena& scratch;  // within one pass of one layer

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

  // output = input + f(norm(input)).  All matrices here: (tokens, hidden), apart.
  virtual void Forward(const BatchShape& shape, const float* input, float* output) = 0;

  // The backward of the latest Forward, in two passes, input's first; `input` is the same.
  // gradient_input = the gradient of the input, given that of the output.
  virtual void BackwardInput(const BatchShape& shape, const float* input,
                             const float* gradient_output, float* gradient_input) = 0;
  // The gradients of the weights, added to what is there if `accumulate`, else overwritten; given
  // the same gradient of the output again. Uses up what Forward kept.
  virtual void BackwardWeights(const BatchShape& shape, const float* input,
                               const float* gradient_output, bool accumulate) = 0;
  // Both passes, to the same bits.
  virtual void Backward(const BatchShape& shape, const float* input, const float* gradient_output,
                        float* gradient_input, bool accumulate) {
    BackwardInput(shape, input, gradient_output, gradient_input);
    BackwardWeights(shape, input, gradient_output, accumulate);
  }
};

}  // namespace paceline
