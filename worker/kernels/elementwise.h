// Element-wise kernels over flat ranges, and the sums that the optimizer needs of them.
// Invariant: element-wise results depend on their own element alone, wherever the range begins
// or ends, so work on shards gives the bits of work on the whole. SumOfSquares adds in a fixed
// order that depends on the range's length alone.
// Threading: a call belongs to the stream's thread.
#pragma once

#include <cstdint>

#include "worker/kernels/adamw_coefficients.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {

// y[i] = value.
void Fill(Stream& stream, float* y, float value, std::int64_t count);
// y[i] = x[i]; the ranges do not overlap.
void Copy(Stream& stream, float* y, const float* x, std::int64_t count);
// y[i] = a[i] + b[i]; y may be a or b.
void Add(Stream& stream, float* y, const float* a, const float* b, std::int64_t count);
// y[i] = factor * x[i]; y may be x.
void Scale(Stream& stream, float* y, const float* x, float factor, std::int64_t count);

// Exact gradient accumulation: sum[i] = x[i], sum[i] += x[i], and y[i] = float(scale * x[i]),
// rounded to float32 once (scale a power of two: once in all).
void WidenToFloat64(Stream& stream, double* sum, const float* x, std::int64_t count);
void AddToFloat64(Stream& stream, double* sum, const float* x, std::int64_t count);
void RoundToFloat32(Stream& stream, float* y, const double* x, double scale, std::int64_t count);

// *sum = sum_i x[i]^2 in float64: 16 lanes, lane i % 16, then a tree. 0 for an empty range.
void SumOfSquares(Stream& stream, double* sum, const float* x, std::int64_t count);

// *index = the first i whose x[i] is NaN or infinite, -1 when there is none.
void FirstNonFinite(Stream& stream, std::int64_t* index, const float* x, std::int64_t count);

// With g = gradient_scale * gradients[i]:
//   m = m + one_minus_beta1 * (g - m);  v = beta2 * v + one_minus_beta2 * g * g
//   w = decay_factor * w - step_size * m / (sqrt(v) * inverse_sqrt_correction + eps)
// Source: Loshchilov & Hutter, arXiv:1711.05101, algorithm 2, as torch.optim.AdamW orders it.
void AdamW(Stream& stream, float* weights, float* exp_avg, float* exp_avg_sq,
           const float* gradients, std::int64_t count, const AdamWCoefficients& coefficients);

}  // namespace paceline::kernels
