#include "worker/trainer/training_state.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {
namespace {

constexpr char kExpAvg[] = "optimizer.exp_avg/";
constexpr char kExpAvgSq[] = "optimizer.exp_avg_sq/";

SliceView View(std::string name, const std::vector<std::int64_t>& global_shape,
               const TensorBox& box, const float* data) {
  SliceView view;
  view.info.name = std::move(name);
  view.info.dtype = "F32";
  view.info.global_shape = global_shape;
  view.info.start = box.start;
  view.info.shape = box.shape;
  view.data = data;
  return view;
}

std::int64_t Elements(const std::vector<std::int64_t>& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : shape) elements *= extent;
  return elements;
}

std::span<std::byte> BytesOf(const StateBuffer& buffer) {
  return std::as_writable_bytes(
      std::span(buffer.data, static_cast<std::size_t>(Elements(buffer.shape))));
}

// Calls visit(parameter, box, offset in `range`) for each box of a parameter that `range` holds.
template <typename Visit>
absl::Status ForEachBox(const std::vector<Parameter>& parameters, const FlatRange& range,
                        Visit visit) {
  for (const Parameter& parameter : parameters) {
    const std::int64_t begin = std::max(parameter.offset, range.begin);
    const std::int64_t end =
        std::min(parameter.offset + parameter.elements, range.begin + range.count);
    if (begin >= end) continue;
    for (const TensorBox& box : BoxesOf(parameter.shape, begin - parameter.offset, end - begin)) {
      const std::int64_t at = parameter.offset + box.offset - range.begin;
      RETURN_IF_ERROR(visit(parameter, box, static_cast<std::size_t>(at)));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadBox(const CheckpointReader& reader, const std::string& name, const TensorBox& box,
                     std::span<float> out) {
  return reader.Read(name, box.start, box.shape, out.first(static_cast<std::size_t>(box.elements)));
}

absl::Status ReadWhole(const CheckpointReader& reader, const std::string& name,
                       const std::vector<std::int64_t>& shape, std::span<float> out) {
  const std::vector<std::int64_t> start(shape.size(), 0);
  return reader.Read(name, start, shape, out);
}

}  // namespace

std::vector<TensorBox> BoxesOf(const std::vector<std::int64_t>& shape, std::int64_t begin,
                               std::int64_t count) {
  PACELINE_CHECK(shape.size() == 1 || shape.size() == 2);
  if (count == 0) return {};
  if (shape.size() == 1) return {{{begin}, {count}, begin, count}};
  const std::int64_t columns = shape[1];
  std::vector<TensorBox> boxes;
  while (count > 0) {
    const std::int64_t row = begin / columns;
    const std::int64_t column = begin % columns;
    if (column == 0 && count >= columns) {
      const std::int64_t rows = count / columns;
      boxes.push_back({{row, 0}, {rows, columns}, begin, rows * columns});
    } else {
      const std::int64_t part = std::min(columns - column, count);
      boxes.push_back({{row, column}, {1, part}, begin, part});
    }
    begin += boxes.back().elements;
    count -= boxes.back().elements;
  }
  return boxes;
}

OptimizerMoments::OptimizerMoments(std::vector<FlatRange> ranges) : ranges_(std::move(ranges)) {
  std::size_t elements = 0;
  for (const FlatRange& range : ranges_) {
    begin_.push_back(elements);
    elements += static_cast<std::size_t>(range.count);
  }
  exp_avg_.assign(elements, 0.0f);
  exp_avg_sq_.assign(elements, 0.0f);
}

std::span<float> OptimizerMoments::Of(std::vector<float>& values, std::size_t range) {
  return std::span(values).subspan(begin_[range], static_cast<std::size_t>(ranges_[range].count));
}

LiveState TakeLiveState(std::int64_t step, const StepHistory& history, Model& model,
                        OptimizerMoments moments) {
  LiveState state = {.step = step, .history = history, .moments = std::move(moments)};
  state.weights.assign(model.weights().begin(), model.weights().end());
  for (const StateBuffer& buffer : model.state_buffers()) {
    state.state_buffers.emplace_back(buffer.data, buffer.data + Elements(buffer.shape));
  }
  return state;
}

absl::Status PutLiveState(LiveState state, Model& model, OptimizerMoments& moments,
                          StepHistory& history) {
  const std::span<StateBuffer> buffers = model.state_buffers();
  bool fits = state.weights.size() == model.weights().size() &&
              state.state_buffers.size() == buffers.size() &&
              state.moments.ranges() == moments.ranges();
  for (std::size_t i = 0; fits && i < buffers.size(); ++i) {
    fits = std::ssize(state.state_buffers[i]) == Elements(buffers[i].shape);
  }
  if (!fits) {
    return absl::FailedPreconditionError(
        absl::StrCat("the state of step ", state.step, " in memory is not this rank's"));
  }
  std::copy(state.weights.begin(), state.weights.end(), model.weights().begin());
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    std::copy(state.state_buffers[i].begin(), state.state_buffers[i].end(), buffers[i].data);
  }
  moments = std::move(state.moments);
  history = state.history;
  return absl::OkStatus();
}

std::vector<std::span<std::byte>> StateArrays(Model& model, OptimizerMoments& moments,
                                              StepHistory& history) {
  std::vector<std::span<std::byte>> arrays = {
      history.bytes(), std::as_writable_bytes(model.weights()),
      std::as_writable_bytes(moments.exp_avg()), std::as_writable_bytes(moments.exp_avg_sq())};
  for (const StateBuffer& buffer : model.state_buffers()) arrays.push_back(BytesOf(buffer));
  return arrays;
}

std::vector<std::span<std::byte>> ReplicatedArrays(Model& model, OptimizerMoments& moments,
                                                   const ParallelLayout& layout) {
  if (layout.expert_data() < 2 || layout.shard_optimizer) return {};
  std::vector<std::span<std::byte>> arrays = {std::as_writable_bytes(model.weights()),
                                              std::as_writable_bytes(moments.exp_avg()),
                                              std::as_writable_bytes(moments.exp_avg_sq())};
  for (const StateBuffer& buffer : model.state_buffers()) arrays.push_back(BytesOf(buffer));
  return arrays;
}

std::vector<SliceView> SlicesToWrite(Model& model, OptimizerMoments& moments,
                                     const ParallelLayout& layout, const RankCoordinates& at) {
  std::vector<SliceView> mine;
  for (std::size_t i = 0; i < model.buckets().size(); ++i) {
    const GradientBucket& bucket = model.buckets()[i];
    const FlatRange shard = ShardOf(bucket, layout, at);
    const auto held = static_cast<std::size_t>(shard.begin - moments.ranges()[i].begin);
    const auto add = [&](const Parameter& parameter, const TensorBox& box, std::size_t at) {
      const auto flat = static_cast<std::size_t>(shard.begin) + at;
      const auto& shape = parameter.shape;
      mine.push_back(View(parameter.name, shape, box, &model.weights()[flat]));
      mine.push_back(View(kExpAvg + parameter.name, shape, box, &moments.exp_avg(i)[held + at]));
      mine.push_back(
          View(kExpAvgSq + parameter.name, shape, box, &moments.exp_avg_sq(i)[held + at]));
      return absl::OkStatus();
    };
    PACELINE_CHECK(ForEachBox(model.parameters(), shard, add).ok());
  }
  if (at.data == 0) {
    for (const StateBuffer& buffer : model.state_buffers()) {
      const TensorBox whole = {std::vector<std::int64_t>(buffer.shape.size(), 0), buffer.shape, 0,
                               Elements(buffer.shape)};
      mine.push_back(View(buffer.name, buffer.shape, whole, buffer.data));
    }
  }
  return mine;
}

absl::Status LoadWeights(const CheckpointReader& reader, Model& model) {
  for (const Parameter& parameter : model.parameters()) {
    RETURN_IF_ERROR(
        ReadWhole(reader, parameter.name, parameter.shape,
                  model.weights().subspan(static_cast<std::size_t>(parameter.offset),
                                          static_cast<std::size_t>(parameter.elements))));
  }
  for (const StateBuffer& buffer : model.state_buffers()) {
    const auto elements = static_cast<std::size_t>(Elements(buffer.shape));
    RETURN_IF_ERROR(ReadWhole(reader, buffer.name, buffer.shape, {buffer.data, elements}));
  }
  return absl::OkStatus();
}

absl::Status LoadState(const CheckpointReader& reader, Model& model, OptimizerMoments& moments) {
  RETURN_IF_ERROR(LoadWeights(reader, model));
  for (std::size_t i = 0; i < moments.ranges().size(); ++i) {
    const auto read = [&](const Parameter& parameter, const TensorBox& box,
                          std::size_t at) -> absl::Status {
      RETURN_IF_ERROR(
          ReadBox(reader, kExpAvg + parameter.name, box, moments.exp_avg(i).subspan(at)));
      return ReadBox(reader, kExpAvgSq + parameter.name, box, moments.exp_avg_sq(i).subspan(at));
    };
    RETURN_IF_ERROR(ForEachBox(model.parameters(), moments.ranges()[i], read));
  }
  return absl::OkStatus();
}

}  // namespace paceline
