// Rotary position embedding, Hugging Face's rotate-half: element i of a head pairs with element
// i + head_dim/2.
// Source: Su et al. 2021, arXiv:2104.09864; transformers' apply_rotary_pos_emb.
// Invariant: each pair depends on itself and its position alone; equal input gives equal bits.
// Threading: a call belongs to the stream's thread; RopeTables is a pure function of the host.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

// cosines, sines: (positions, head_dim / 2), host memory:
//   angle[p,i] = p * theta^(-2i / head_dim), computed in float64, rounded once.
void RopeTables(float* cosines, float* sines, std::int64_t positions, std::int64_t head_dim,
                double theta);

// In place on x: `rows` rows (batch by sequence) of `heads` heads of head_dim values each; rows
// begin row_stride elements apart. Row r stands at position r % sequence, and the tables have at
// least `sequence` positions. With h = head_dim / 2, i < h:
//   x'[i]     = x[i] cos[p,i] - x[i+h] sin[p,i]
//   x'[i + h] = x[i+h] cos[p,i] + x[i] sin[p,i]
// Queries and keys that lie side by side in one row may go in one call with heads = both.
void RopeForward(Stream& stream, float* x, const float* cosines, const float* sines,
                 std::int64_t rows, std::int64_t sequence, std::int64_t heads,
                 std::int64_t head_dim, std::int64_t row_stride);

// The gradient, in place on dx: the inverse rotation.
void RopeBackward(Stream& stream, float* dx, const float* cosines, const float* sines,
                  std::int64_t rows, std::int64_t sequence, std::int64_t heads,
                  std::int64_t head_dim, std::int64_t row_stride);

}  // namespace paceline::kernels
