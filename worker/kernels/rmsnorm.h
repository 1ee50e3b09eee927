// Root-mean-square normalisation, alone and fused with the residual addition before it.
// Source: Zhang & Sennrich 2019, arXiv:1910.07467, with eps inside the root as in Llama.
// Invariant: sums run in a fixed order (16 lanes over the columns, then a tree; weight gradients
// over the rows in order), so equal input gives equal bits, and a row's output depends on that
// row alone.
// Threading: a call belongs to the stream's thread.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

// rstd[r] = 1 / sqrt(mean_c(x[r,c]^2) + eps);  y[r,c] = x[r,c] * rstd[r] * weight[c].
// y, x: (rows, cols); rstd: (rows); weight: (cols). y may be x.
void RmsNormForward(Stream& stream, float* y, float* rstd, const float* x, const float* weight,
                    std::int64_t rows, std::int64_t cols, float eps);

// sum = a + b; then RmsNormForward of sum.  sum, y, a, b: (rows, cols). sum may be a or b; y is
// apart from all of them.
void AddRmsNormForward(Stream& stream, float* sum, float* y, float* rstd, const float* a,
                       const float* b, const float* weight, std::int64_t rows, std::int64_t cols,
                       float eps);

// With g = dy * weight and xhat = x * rstd:
//   dx[r,c] = rstd[r] * (g[r,c] - xhat[r,c] * mean_c(g[r,:] * xhat[r,:])) + dresidual[r,c]
// dresidual: the gradient that reaches x past the norm, (rows, cols), or null for none.
// dx may be dy or dresidual.
void RmsNormBackward(Stream& stream, float* dx, const float* dy, const float* x,
                     const float* weight, const float* rstd, const float* dresidual,
                     std::int64_t rows, std::int64_t cols);

// dweight[c] = sum_r dy[r,c] * x[r,c] * rstd[r], added to what is there if `accumulate`.
// dweight: (cols).
void RmsNormWeightGradient(Stream& stream, float* dweight, const float* dy, const float* x,
                           const float* rstd, std::int64_t rows, std::int64_t cols,
                           bool accumulate);

}  // namespace paceline::kernels
