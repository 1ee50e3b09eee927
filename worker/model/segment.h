// A run of decoder layers over the memory of one micro-batch in flight, with the embedding before
// it if it begins the model and the head after it if it ends it.
//
//   tokens -> embedding -> residual[0] -> layers[0] -> residual[1] ... -> head -> loss
//
// Parts are what the backward finishes one after the other: head, layers from the last to the
// first, embedding.
// Invariant: parts lay out their parameters in that order, so completed()[i] elements of the flat
// arrays are done after the i-th of them.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/model_shape.h"
#include "worker/model/attention_layer.h"
#include "worker/model/embedding.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/head.h"
#include "worker/model/layer.h"
#include "worker/model/model.h"

namespace paceline {

// What all sparse layers share; the arrays are the whole model's, (sparse layers,
// n_routed_experts).
struct RoutingState {
  float* balancing_biases = nullptr;  // null: there are none
  std::int64_t* expert_tokens = nullptr;
  ExpertTransport* group = nullptr;
};

std::int64_t SparseLayersBefore(const ModelSection& section, std::int64_t layer);

struct SegmentOptions {
  LayerRange layers;
  bool split_backward = false;
  RopeTable rope;
  RoutingState routing;
  // (tokens, hidden), used within one Backward; null with split_backward and without training.
  float* gradient_scratch = nullptr;
};

class Segment {
 public:
  // buffers: where what lies between the layers is kept; the layers use the context's arenas.
  Segment(const LayerContext& context, const SegmentOptions& options, Arena& buffers);

  const std::vector<RegionElements>& completed() const { return completed_; }
  // Of SegmentBuffers, likewise null.
  float* output() const { return head_ ? nullptr : residual_.back(); }
  float* gradient() const { return training_ ? gradient_.front() : nullptr; }

  // As Model's; `part_completed(i)` is called once the weight gradients of part i are enqueued.
  // input: read until the last backward pass; null, and not read, with the embedding.
  float Forward(const MicroBatch& batch, float* input);
  void Logits(const MicroBatch& batch, std::span<float> logits);
  void Backward(float loss_scale, bool accumulate,
                absl::FunctionRef<void(std::size_t)> part_completed);
  void BackwardInput(float loss_scale);
  void BackwardWeights(bool accumulate, absl::FunctionRef<void(std::size_t)> part_completed);

 private:
  // Forward leads from anywhere to kForwarded, Backward from there to kDone, BackwardInput from
  // there to kWeightsLeft, BackwardWeights from there to kDone.
  enum class State { kDone, kForwarded, kWeightsLeft };
  struct Passes {
    bool input = false;
    bool weights = false;
    bool accumulate = false;  // the weight gradients
  };

  void AllocateBuffers(const LayerContext& context, const SegmentOptions& options, Arena& buffers);
  void BuildLayers(const LayerContext& context, const SegmentOptions& options);
  // Ends what the latest constructed part needs only while it runs.
  void FinishPart(const LayerContext& context);
  void ForwardLayers(const MicroBatch& batch);
  // Puts the gradient of the last layer's output where the layers' backward begins.
  void StartBackward(float loss_scale);
  void RunBackward(const Passes& passes, absl::FunctionRef<void(std::size_t)> part_completed);

  Stream& stream_;
  const bool training_;
  const bool tied_;
  const bool split_backward_;
  const std::int64_t hidden_;
  const BatchShape shape_max_;

  std::optional<Head> head_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::optional<Embedding> embedding_;
  std::vector<RegionElements> completed_;

  // One more than layers. The first of the residual stream is the embedding's, or the input that
  // Forward was given. Without training the residual stream's take turns; without split_backward
  // the gradients' do.
  std::vector<float*> residual_;
  std::vector<float*> gradient_;

  BatchShape shape_;  // of the latest Forward
  State state_ = State::kDone;
};

}  // namespace paceline
