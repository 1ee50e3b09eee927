#include "worker/kernels/embedding.h"

#include <algorithm>

#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

PACELINE_VECTOR_CLONES
void AddRow(float* sum, const float* x, std::int64_t cols) {
#pragma GCC ivdep
  for (std::int64_t c = 0; c < cols; ++c) sum[c] += x[c];
}

}  // namespace

void EmbeddingForward(Stream& stream, float* y, const float* table, const std::int32_t* tokens,
                      std::int64_t rows, std::int64_t cols) {
  stream.Enqueue([=] {
    for (std::int64_t r = 0; r < rows; ++r) {
      std::copy_n(table + tokens[r] * cols, cols, y + r * cols);
    }
  });
}

void EmbeddingBackward(Stream& stream, float* dtable, const float* dy, const std::int32_t* tokens,
                       std::int64_t rows, std::int64_t vocab, std::int64_t cols, bool accumulate) {
  stream.Enqueue([=] {
    if (!accumulate) std::fill_n(dtable, vocab * cols, 0.0f);
    for (std::int64_t r = 0; r < rows; ++r) AddRow(dtable + tokens[r] * cols, dy + r * cols, cols);
  });
}

}  // namespace paceline::kernels
