#include "worker/model/transformer.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "worker/kernels/rope.h"

namespace paceline {

SegmentBuckets MergeIntoBuckets(const RegionElements& start,
                                const std::vector<RegionElements>& completed,
                                std::int64_t expert_start) {
  constexpr auto kElementsMin = kBucketBytesMin / static_cast<std::int64_t>(sizeof(float));
  SegmentBuckets merged;
  RegionElements open = start;
  for (std::size_t part = 0; part < completed.size(); ++part) {
    const auto close = [&](std::int64_t& from, std::int64_t end, bool expert) {
      if (end - from < kElementsMin && part + 1 < completed.size()) return;
      if (end == from) return;
      merged.buckets.push_back({(expert ? expert_start : 0) + from, end - from, expert});
      from = end;
    };
    close(open.replicated, completed[part].replicated, /*expert=*/false);
    close(open.expert, completed[part].expert, /*expert=*/true);
    merged.complete_after.push_back(merged.buckets.size());
  }
  return merged;
}

Transformer::Transformer(const ModelSection& section, const ModelOptions& options, Stream& compute,
                         ArenaMemory memory, const TransformerSizes& sizes)
    : section_(section),
      options_(options),
      stream_(compute),
      memory_(std::move(memory)),
      sizes_(sizes) {
  if (memory_.data() != nullptr) {
    saved_ = Arena(memory_.data(), sizes.saved_bytes);
    scratch_ = Arena(memory_.data() + sizes.saved_bytes, sizes.scratch_bytes);
  }
  AllocateState();
  BuildSegments();
  parameters_ = layout_.parameters();
}

void Transformer::AllocateState() {
  std::int64_t elements = 0;
  for (const TensorShape& tensor : ModelTensors(section_, options_.part)) {
    elements += tensor.elements();
  }
  const bool measures = memory_.data() == nullptr;
  const auto take = [&](auto& span, std::int64_t count) {
    auto* data = saved_.Allocate<typename std::decay_t<decltype(span)>::element_type>(count);
    if (!measures) span = {data, static_cast<std::size_t>(count)};
  };
  take(weights_, elements);
  if (options_.training) take(gradients_, elements);
  if (!measures) {
    layout_ = ParameterLayout(weights_.data(), gradients_.data(), sizes_.elements.replicated);
  }
  const std::int64_t experts =
      SparseLayersBefore(section_, section_.num_hidden_layers) * section_.n_routed_experts;
  take(expert_tokens_, experts);
  take(balancing_biases_, ModelStateBuffers(section_).empty() ? 0 : experts);
  if (!measures) NameStateBuffers();
}

void Transformer::NameStateBuffers() {
  std::vector<TensorShape> biases = ModelStateBuffers(section_, options_.part);
  auto bias = biases.begin();
  for (const LayerRange& segment : options_.part.segments) {
    for (std::int64_t layer = segment.first; layer < segment.end && bias != biases.end(); ++layer) {
      if (!section_.IsSparse(layer)) continue;
      const std::int64_t row = SparseLayersBefore(section_, layer);
      state_buffers_.push_back({std::move(bias->name), std::move(bias->shape),
                                balancing_biases_.data() + row * section_.n_routed_experts});
      ++bias;
    }
  }
}

void Transformer::BuildSegments() {
  const std::int64_t angles = options_.sequence_length * (section_.head_dim / 2);
  auto* cosines = saved_.Allocate<float>(angles);
  auto* sines = saved_.Allocate<float>(angles);
  if (cosines != nullptr) {
    kernels::RopeTables(cosines, sines, options_.sequence_length, section_.head_dim,
                        section_.rope_theta);
  }
  SegmentOptions options;
  options.rope = {cosines, sines};
  options.split_backward = options_.split_backward;
  options.routing = {balancing_biases_.empty() ? nullptr : balancing_biases_.data(),
                     expert_tokens_.data(), &expert_group_};
  if (options_.training && !options_.split_backward) {
    options.gradient_scratch = saved_.Allocate<float>(
        options_.micro_batch_size * options_.sequence_length * section_.hidden_size);
  }
  const std::size_t count = options_.part.segments.size();
  segments_.resize(count * static_cast<std::size_t>(options_.slots));
  bucket_ranges_.resize(count);
  for (const LayerRange& segment : options_.part.segments) {
    const std::int64_t elements =
        options_.micro_batch_size * options_.sequence_length * section_.hidden_size;
    for (int place = 0; place <= options_.slots; ++place) {
      inputs_.push_back(segment.first == 0 ? nullptr : saved_.Allocate<float>(elements));
    }
  }
  for (std::size_t index = count; index-- > 0;) BuildSegment(index, options);
}

void Transformer::BuildSegment(std::size_t index, SegmentOptions options) {
  options.layers = options_.part.segments[index];
  const ParameterLayout before = layout_;
  const auto slots = static_cast<std::size_t>(options_.slots);
  for (std::size_t slot = 0; slot < slots; ++slot) {
    layout_ = before;  // every slot has the same parameters
    const LayerContext context{
        .section = section_,
        .first_expert = options_.part.first_expert,
        .end_expert = options_.part.end_expert,
        .rows_max = options_.micro_batch_size,
        .sequence_max = options_.sequence_length,
        .training = options_.training,
        .stream = stream_,
        .parameters = layout_,
        .saved = options_.training ? saved_ : scratch_,
        .between = options_.training && options_.split_backward ? saved_ : scratch_,
        .scratch = scratch_};
    segments_[index * slots + slot] = std::make_unique<Segment>(context, options, saved_);
  }
  SegmentBuckets merged = MergeIntoBuckets(before.elements(), segments_[index * slots]->completed(),
                                           layout_.expert_start());
  bucket_ranges_[index] = {buckets_.size(), std::move(merged.complete_after)};
  buckets_.insert(buckets_.end(), merged.buckets.begin(), merged.buckets.end());
}

Segment& Transformer::At(int segment, int micro_batch) {
  PACELINE_CHECK(segment >= 0 && static_cast<std::size_t>(segment) < bucket_ranges_.size());
  PACELINE_CHECK(micro_batch >= 0);
  const int slot = micro_batch % options_.slots;
  return *segments_[static_cast<std::size_t>(segment * options_.slots + slot)];
}

float* Transformer::InputOf(int segment, int micro_batch) const {
  const int places = options_.slots + 1;
  return inputs_[static_cast<std::size_t>(segment * places + micro_batch % places)];
}

SegmentBuffers Transformer::buffers(int segment, int micro_batch) {
  const Segment& at = At(segment, micro_batch);
  return {.input = InputOf(segment, micro_batch), .output = at.output(), .gradient = at.gradient()};
}

void Transformer::Initialize(std::uint64_t seed) {
  for (const Parameter& parameter : parameters_) {
    const std::span<float> values = weights_.subspan(static_cast<std::size_t>(parameter.offset),
                                                     static_cast<std::size_t>(parameter.elements));
    if (parameter.shape.size() == 1) {
      std::fill(values.begin(), values.end(), 1.0f);
    } else {
      FillInitialNormal(seed, parameter.name, section_.initializer_range, values);
    }
  }
  std::fill(balancing_biases_.begin(), balancing_biases_.end(), 0.0f);
}

float Transformer::Forward(const MicroBatch& batch, int segment, int micro_batch) {
  return At(segment, micro_batch).Forward(batch, InputOf(segment, micro_batch));
}

void Transformer::Backward(float loss_scale, bool accumulate,
                           const std::function<void(std::size_t)>& bucket_ready, int segment,
                           int micro_batch) {
  At(segment, micro_batch).Backward(loss_scale, accumulate, [&](std::size_t part) {
    ReportBuckets(segment, part, bucket_ready);
  });
}

void Transformer::BackwardInput(float loss_scale, int segment, int micro_batch) {
  At(segment, micro_batch).BackwardInput(loss_scale);
}

void Transformer::BackwardWeights(bool accumulate,
                                  const std::function<void(std::size_t)>& bucket_ready, int segment,
                                  int micro_batch) {
  At(segment, micro_batch).BackwardWeights(accumulate, [&](std::size_t part) {
    ReportBuckets(segment, part, bucket_ready);
  });
}

void Transformer::ReportBuckets(int segment, std::size_t part,
                                const std::function<void(std::size_t)>& bucket_ready) const {
  const BucketRange& range = bucket_ranges_[static_cast<std::size_t>(segment)];
  std::size_t next = part == 0 ? 0 : range.complete_after[part - 1];
  while (next < range.complete_after[part]) bucket_ready(range.first + next++);
}

void Transformer::UseExpertGroup(Communicator& group, Stream& communication) {
  const ModelPart& part = options_.part;
  PACELINE_CHECK(group.size() * part.experts() == section_.n_routed_experts &&
                 group.rank() * part.experts() == part.first_expert);
  expert_group_.communicator = &group;
  expert_group_.communication = &communication;
}

void Transformer::Logits(const MicroBatch& batch, std::span<float> logits) {
  PACELINE_CHECK(static_cast<std::int64_t>(logits.size()) ==
                 batch.rows * batch.sequence * section_.vocab_size);
  At(0, 0).Logits(batch, logits);
}

void Transformer::ResetExpertTokens() {
  std::fill(expert_tokens_.begin(), expert_tokens_.end(), 0);
}

void Transformer::UpdateRouterBias(float rate) {
  if (balancing_biases_.empty()) return;
  const auto experts = static_cast<std::size_t>(section_.n_routed_experts);
  for (std::size_t first = 0; first < expert_tokens_.size(); first += experts) {
    const std::span<const std::int64_t> loads = expert_tokens_.subspan(first, experts);
    std::int64_t sum = 0;
    for (const std::int64_t load : loads) sum += load;
    for (std::size_t e = 0; e < experts; ++e) {
      // Compared without dividing, so that no rounding decides the sign.
      const std::int64_t excess = loads[e] * section_.n_routed_experts - sum;
      if (excess < 0) balancing_biases_[first + e] += rate;
      if (excess > 0) balancing_biases_[first + e] -= rate;
    }
  }
}

}  // namespace paceline
