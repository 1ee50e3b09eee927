// The gated activation of the feed-forward layers.
// Source: Shazeer 2020, arXiv:2002.05202, with silu(g) = g / (1 + exp(-g)).
// Invariant: element-wise: each result depends on its own inputs alone, wherever it lies.
// Threading: a call belongs to the stream's thread.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

// y[r,c] = silu(gate[r,c]) * up[r,c].  y: (rows, cols), dense. Rows of gate and up lie
// input_stride elements apart, so both may be halves of one matrix of projections.
void SwigluForward(Stream& stream, float* y, const float* gate, const float* up, std::int64_t rows,
                   std::int64_t cols, std::int64_t input_stride);
// The same, with the number of rows read when the stream gets here.
void SwigluForward(Stream& stream, float* y, const float* gate, const float* up,
                   const std::int32_t* rows, std::int64_t cols, std::int64_t input_stride);

// With s = 1 / (1 + exp(-gate)):
//   dgate = dy * up * s * (1 + gate * (1 - s));  dup = dy * gate * s
// dgate, dup: rows input_stride apart; they may be gate and up themselves. dy: dense.
void SwigluBackward(Stream& stream, float* dgate, float* dup, const float* dy, const float* gate,
                    const float* up, std::int64_t rows, std::int64_t cols,
                    std::int64_t input_stride);
void SwigluBackward(Stream& stream, float* dgate, float* dup, const float* dy, const float* gate,
                    const float* up, const std::int32_t* rows, std::int64_t cols,
                    std::int64_t input_stride);

}  // namespace paceline::kernels
