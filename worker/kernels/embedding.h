// Embedding lookup and its gradient.
// Invariant: gradients of a token that occurs several times are added in the order of the rows,
// so equal input gives equal bits.
// Threading: a call belongs to the stream's thread.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

// y[r] = table[tokens[r]].  y: (rows, cols); table: (vocab, cols); tokens: (rows), each in
// [0, vocab) (the corpus reader has checked them).
void EmbeddingForward(Stream& stream, float* y, const float* table, const std::int32_t* tokens,
                      std::int64_t rows, std::int64_t cols);

// dtable[tokens[r]] += dy[r] for r = 0, 1, ...  dtable: (vocab, cols). Unless `accumulate`,
// dtable is set to zero first.
void EmbeddingBackward(Stream& stream, float* dtable, const float* dy, const std::int32_t* tokens,
                       std::int64_t rows, std::int64_t vocab, std::int64_t cols, bool accumulate);

}  // namespace paceline::kernels
