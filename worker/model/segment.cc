#include "worker/model/segment.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "worker/kernels/elementwise.h"
#include "worker/model/dense_mlp.h"
#include "worker/model/moe_layer.h"

namespace paceline {

std::int64_t SparseLayersBefore(const ModelSection& section, std::int64_t layer) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < layer; ++i) count += section.IsSparse(i) ? 1 : 0;
  return count;
}

Segment::Segment(const LayerContext& context, const SegmentOptions& options, Arena& buffers)
    : stream_(context.stream),
      training_(context.training),
      tied_(context.section.tie_word_embeddings),
      split_backward_(options.split_backward),
      hidden_(context.section.hidden_size),
      shape_max_{context.rows_max, context.sequence_max} {
  AllocateBuffers(context, options, buffers);
  // In the order of backward, which is the order of the flat arrays.
  if (options.layers.end == context.section.num_hidden_layers) {
    head_.emplace(context);
    FinishPart(context);
  }
  BuildLayers(context, options);
  if (options.layers.first == 0) {
    embedding_.emplace(context);
    FinishPart(context);
  }
  if (head_ && tied_) head_->TieTo(embedding_->table());
}

void Segment::AllocateBuffers(const LayerContext& context, const SegmentOptions& options,
                              Arena& buffers) {
  const std::int64_t elements = shape_max_.tokens() * hidden_;
  const auto count = 2 * static_cast<std::size_t>(options.layers.layers()) + 1;
  const bool head = options.layers.end == context.section.num_hidden_layers;
  const std::size_t first = options.layers.first == 0 ? 0 : 1;  // that is not the caller's
  residual_.assign(first, nullptr);
  for (std::size_t i = first; i < count; ++i) {
    // The output stays apart even where the others take turns: the caller still reads it when the
    // next micro-batch has begun.
    const bool own = training_ || i < first + 2 || (i + 1 == count && !head);
    residual_.push_back(own ? buffers.Allocate<float>(elements) : residual_[i - 2]);
  }
  if (!training_) return;
  for (std::size_t i = 0; i < count; ++i) {
    const bool own = split_backward_ || i == 0;
    gradient_.push_back(own          ? buffers.Allocate<float>(elements)
                        : i % 2 == 0 ? gradient_[0]
                                     : options.gradient_scratch);
  }
}

void Segment::BuildLayers(const LayerContext& context, const SegmentOptions& options) {
  const ModelSection& section = context.section;
  std::int64_t sparse = SparseLayersBefore(section, options.layers.end);
  for (std::int64_t layer = options.layers.end - 1; layer >= options.layers.first; --layer) {
    const std::string name = absl::StrCat("model.layers.", layer);
    if (section.IsSparse(layer)) {
      const std::int64_t row = --sparse * section.n_routed_experts;
      const RoutingState& routing = options.routing;
      layers_.push_back(std::make_unique<MoeLayer>(
          context, name,
          routing.balancing_biases == nullptr ? nullptr : routing.balancing_biases + row,
          routing.expert_tokens == nullptr ? nullptr : routing.expert_tokens + row,
          *routing.group));
    } else {
      layers_.push_back(std::make_unique<DenseMlp>(context, name));
    }
    FinishPart(context);
    layers_.push_back(std::make_unique<AttentionLayer>(context, name, options.rope));
    FinishPart(context);
  }
  std::reverse(layers_.begin(), layers_.end());
}

void Segment::FinishPart(const LayerContext& context) {
  completed_.push_back(context.parameters.elements());
  context.scratch.Rewind(0);
}

void Segment::ForwardLayers(const MicroBatch& batch) {
  shape_ = {batch.rows, batch.sequence};
  PACELINE_CHECK(shape_.rows <= shape_max_.rows && shape_.sequence <= shape_max_.sequence);
  if (embedding_) {
    PACELINE_CHECK(static_cast<std::int64_t>(batch.tokens.size()) == shape_.tokens());
    embedding_->Forward(batch.tokens, residual_[0]);
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i]->Forward(shape_, residual_[i], residual_[i + 1]);
  }
}

float Segment::Forward(const MicroBatch& batch, float* input) {
  if (!embedding_) residual_.front() = input;
  ForwardLayers(batch);
  if (training_) state_ = State::kForwarded;
  if (!head_) return 0;
  PACELINE_CHECK(static_cast<std::int64_t>(batch.targets.size()) == shape_.tokens());
  return static_cast<float>(head_->ForwardLoss(residual_.back(), batch.targets));
}

void Segment::Logits(const MicroBatch& batch, std::span<float> logits) {
  PACELINE_CHECK(head_.has_value());
  ForwardLayers(batch);
  state_ = State::kDone;
  head_->Logits(residual_.back(), shape_.tokens(), logits.data());
}

void Segment::StartBackward(float loss_scale) {
  PACELINE_CHECK(state_ == State::kForwarded);
  if (head_) {
    head_->BackwardInput(residual_.back(), loss_scale, gradient_.back());
  } else if (split_backward_) {
    // The caller's buffer will hold the gradient of the input before the last layer's weights
    // have seen that of the output.
    kernels::Copy(stream_, gradient_.back(), gradient_.front(), shape_.tokens() * hidden_);
  }
}

void Segment::Backward(float loss_scale, bool accumulate,
                       absl::FunctionRef<void(std::size_t)> part_completed) {
  StartBackward(loss_scale);
  RunBackward({.input = true, .weights = true, .accumulate = accumulate}, part_completed);
  state_ = State::kDone;
}

void Segment::BackwardInput(float loss_scale) {
  PACELINE_CHECK(split_backward_);
  StartBackward(loss_scale);
  RunBackward({.input = true}, [](std::size_t) {});
  state_ = State::kWeightsLeft;
}

void Segment::BackwardWeights(bool accumulate,
                              absl::FunctionRef<void(std::size_t)> part_completed) {
  PACELINE_CHECK(state_ == State::kWeightsLeft);
  RunBackward({.weights = true, .accumulate = accumulate}, part_completed);
  state_ = State::kDone;
}

void Segment::RunBackward(const Passes& passes,
                          absl::FunctionRef<void(std::size_t)> part_completed) {
  std::size_t part = 0;
  if (head_ && passes.weights) {
    head_->BackwardWeights(residual_.back(), passes.accumulate);
    part_completed(part++);
  }
  for (std::size_t i = layers_.size(); i-- > 0;) {
    if (!passes.weights) {
      layers_[i]->BackwardInput(shape_, residual_[i], gradient_[i + 1], gradient_[i]);
      continue;
    }
    if (passes.input) {
      layers_[i]->Backward(shape_, residual_[i], gradient_[i + 1], gradient_[i], passes.accumulate);
    } else {
      layers_[i]->BackwardWeights(shape_, residual_[i], gradient_[i + 1], passes.accumulate);
    }
    part_completed(part++);
  }
  if (embedding_ && passes.weights) {
    // A tied table already holds the head's part.
    embedding_->Backward(gradient_[0], passes.accumulate || tied_);
    part_completed(part++);
  }
}

}  // namespace paceline
