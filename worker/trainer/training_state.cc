#include "worker/trainer/training_state.h"

#include <algorithm>
#include <cstdint>
#include <string>

namespace paceline {
namespace {

constexpr char kExpAvg[] = "optimizer.exp_avg/";
constexpr char kExpAvgSq[] = "optimizer.exp_avg_sq/";

SliceView Whole(std::string name, const std::vector<std::int64_t>& shape, const float* data) {
  SliceView view;
  view.info.name = std::move(name);
  view.info.dtype = "F32";
  view.info.global_shape = shape;
  view.info.start.assign(shape.size(), 0);
  view.info.shape = shape;
  view.data = data;
  return view;
}

absl::Status ReadWhole(const CheckpointReader& reader, const std::string& name,
                       const std::vector<std::int64_t>& shape, std::span<float> out) {
  const std::vector<std::int64_t> start(shape.size(), 0);
  return reader.Read(name, start, shape, out);
}

std::int64_t Elements(const std::vector<std::int64_t>& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : shape) elements *= extent;
  return elements;
}

}  // namespace

std::vector<SliceView> SlicesOfRank(Model& model, const OptimizerMoments& moments, int rank,
                                    int size) {
  std::vector<std::int64_t> load(static_cast<std::size_t>(size), 0);
  std::vector<SliceView> mine;
  for (const Parameter& parameter : model.parameters()) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += parameter.elements;
    if (least - load.begin() != rank) continue;
    const auto offset = static_cast<std::size_t>(parameter.offset);
    mine.push_back(Whole(parameter.name, parameter.shape, &model.weights()[offset]));
    mine.push_back(Whole(kExpAvg + parameter.name, parameter.shape, &moments.exp_avg[offset]));
    mine.push_back(Whole(kExpAvgSq + parameter.name, parameter.shape, &moments.exp_avg_sq[offset]));
  }
  if (rank == 0) {
    for (const StateBuffer& buffer : model.state_buffers()) {
      mine.push_back(Whole(buffer.name, buffer.shape, buffer.data));
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

absl::Status LoadState(const CheckpointReader& reader, Model& model,
                       const OptimizerMoments& moments) {
  RETURN_IF_ERROR(LoadWeights(reader, model));
  for (const Parameter& parameter : model.parameters()) {
    const auto offset = static_cast<std::size_t>(parameter.offset);
    const auto elements = static_cast<std::size_t>(parameter.elements);
    RETURN_IF_ERROR(ReadWhole(reader, kExpAvg + parameter.name, parameter.shape,
                              moments.exp_avg.subspan(offset, elements)));
    RETURN_IF_ERROR(ReadWhole(reader, kExpAvgSq + parameter.name, parameter.shape,
                              moments.exp_avg_sq.subspan(offset, elements)));
  }
  return absl::OkStatus();
}

}  // namespace paceline
