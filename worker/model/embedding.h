// The embedding: the first thing of the model's first segment.
// Invariant: as Layer's. A tied table's gradient already holds the head's part when Backward runs.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <span>

#include "worker/model/layer.h"

namespace paceline {

class Embedding {
 public:
  explicit Embedding(const LayerContext& context);

  // output: (tokens.size(), hidden). Keeps a copy of the tokens for Backward.
  void Forward(std::span<const std::int32_t> tokens, float* output);
  // gradient: that of the latest Forward's output.
  void Backward(const float* gradient, bool accumulate);

  const Weight& table() const { return table_; }  // (vocab, hidden)

 private:
  Stream& stream_;
  const std::int64_t vocab_;
  const std::int64_t hidden_;
  const Weight table_;
  std::int32_t* const tokens_;  // (tokens)
  std::int64_t count_ = 0;
};

}  // namespace paceline
