#include "worker/model/layer.h"

#include <utility>

namespace paceline {

Weight ParameterLayout::Add(const std::string& name, std::vector<std::int64_t> shape, bool expert) {
  Parameter parameter;
  parameter.name = name;
  parameter.weight_decay = shape.size() > 1;
  parameter.shape = std::move(shape);
  parameter.elements = 1;
  for (const std::int64_t extent : parameter.shape) parameter.elements *= extent;
  // Model::Create asks for a hidden_size that makes this so without padding, which would come
  // between matrices that are multiplied as one.
  PACELINE_CHECK(parameter.elements % kAlignElements == 0);
  const std::int64_t offset = expert ? expert_start_ + elements_.expert : elements_.replicated;
  parameter.offset = offset;
  (expert ? elements_.expert : elements_.replicated) += parameter.elements;
  (expert ? expert_ : replicated_).push_back(std::move(parameter));
  return {weights_ == nullptr ? nullptr : weights_ + offset,
          gradients_ == nullptr ? nullptr : gradients_ + offset};
}

std::vector<Parameter> ParameterLayout::parameters() const {
  std::vector<Parameter> all = replicated_;
  all.insert(all.end(), expert_.begin(), expert_.end());
  return all;
}

}  // namespace paceline
