// From tokens to experts and back. Assignment a = t * top_k + k says that token t goes to its
// k-th expert. Sorted by expert the assignments become rows of one matrix, on which the experts
// work in turn (GroupedGemm), however many each got: no token is dropped, none is padded.
// Invariant: the sort is stable (within an expert: token order); sums over a token's experts run
// in the order of k. Equal input gives equal bits.
// Threading: a call belongs to the stream's thread.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

// Counting sort of `assignments` = tokens * top_k experts, each in [0, experts).
// offsets: (experts + 1), expert e owns the sorted rows [offsets[e], offsets[e + 1]);
// row: (assignments), the sorted row of an assignment; assignment: (assignments), its inverse.
void SortByExpert(Stream& stream, std::int32_t* offsets, std::int32_t* row,
                  std::int32_t* assignment, const std::int32_t* expert, std::int64_t assignments,
                  std::int64_t experts);

// counts[e] += offsets[e + 1] - offsets[e].  counts: (experts).
void CountExpertTokens(Stream& stream, std::int64_t* counts, const std::int32_t* offsets,
                       std::int64_t experts);

// out[p] = x[assignment[p] / top_k].  out: (tokens * top_k, cols), sorted; x: (tokens, cols).
void GatherRows(Stream& stream, float* out, const float* x, const std::int32_t* assignment,
                std::int64_t tokens, std::int64_t top_k, std::int64_t cols);

// dx[t] = base[t] + sum_k dout[row[t * top_k + k]].  dx, base: (tokens, cols); base may be dx, or
// null for zero.
void GatherRowsBackward(Stream& stream, float* dx, const float* dout, const std::int32_t* row,
                        const float* base, std::int64_t tokens, std::int64_t top_k,
                        std::int64_t cols);

// y[t] = base[t] + sum_k weights[t,k] * x[row[t * top_k + k]].  y, base: (tokens, cols);
// x: (tokens * top_k, cols), sorted, the experts' outputs. base (the shared experts' output) may
// be y, or null for zero.
void CombineForward(Stream& stream, float* y, const float* x, const std::int32_t* row,
                    const float* weights, const float* base, std::int64_t tokens,
                    std::int64_t top_k, std::int64_t cols);

// With p = row[t * top_k + k]:  dx[p] = weights[t,k] * dy[t];  dweights[t,k] = dy[t] . x[p].
// dx may be x. (base's gradient is dy.)
void CombineBackward(Stream& stream, float* dx, float* dweights, const float* dy, const float* x,
                     const std::int32_t* row, const float* weights, std::int64_t tokens,
                     std::int64_t top_k, std::int64_t cols);

// For each block b: y[y_start[b] + i] = x[x_start[b] + i], i in [0, block_rows[b]).
// y, x: (rows, cols), apart. The arrays have `blocks` entries and are read when the stream gets
// here.
void MoveRowBlocks(Stream& stream, float* y, const std::int32_t* y_start, const float* x,
                   const std::int32_t* x_start, const std::int32_t* block_rows, std::int64_t blocks,
                   std::int64_t cols);

}  // namespace paceline::kernels
