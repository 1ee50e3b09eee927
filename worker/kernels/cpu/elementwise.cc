#include "worker/kernels/elementwise.h"

#include <algorithm>

#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

using cpu::kLanes;

PACELINE_VECTOR_CLONES
void AddLoop(float* y, const float* a, const float* b, std::int64_t count) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) y[i] = a[i] + b[i];
}

PACELINE_VECTOR_CLONES
void ScaleLoop(float* y, const float* x, float factor, std::int64_t count) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) y[i] = factor * x[i];
}

PACELINE_VECTOR_CLONES
void WidenLoop(double* sum, const float* x, std::int64_t count) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) sum[i] = x[i];
}

PACELINE_VECTOR_CLONES
void AddWideLoop(double* sum, const float* x, std::int64_t count) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) sum[i] += x[i];
}

PACELINE_VECTOR_CLONES
void RoundLoop(float* y, const double* x, double scale, std::int64_t count) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(scale * x[i]);
}

// Sixteen float64 lanes, in two halves: a register each.
typedef float HalfFloats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));

PACELINE_INLINE Doubles SquaresOf(const float* x) {
  HalfFloats half;
  __builtin_memcpy(&half, x, sizeof(half));
  const Doubles wide = __builtin_convertvector(half, Doubles);
  return wide * wide;
}

PACELINE_VECTOR_CLONES
double SquaresLoop(const float* x, std::int64_t count) {
  Doubles low = {};
  Doubles high = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    low += SquaresOf(x + i);
    high += SquaresOf(x + i + kLanes / 2);
  }
  float last[kLanes] = {};
  for (std::int64_t lane = 0; i + lane < count; ++lane) last[lane] = x[i + lane];
  low += SquaresOf(last);
  high += SquaresOf(last + kLanes / 2);
  low += high;
  low += __builtin_shufflevector(low, low, 4, 5, 6, 7, 0, 1, 2, 3);
  low += __builtin_shufflevector(low, low, 2, 3, 0, 1, 6, 7, 4, 5);
  return low[0] + low[1];
}

PACELINE_VECTOR_CLONES
std::int32_t CountNonFinite(const float* x, std::int64_t count) {
  std::int32_t bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad += IsFinite(x[i]) ? 0 : 1;
  return bad;
}

// Counting is vectorised and looking is not, so it looks only into the first bad block.
std::int64_t FindNonFinite(const float* x, std::int64_t count) {
  constexpr std::int64_t kBlock = 4096;
  for (std::int64_t first = 0; first < count; first += kBlock) {
    const std::int64_t end = std::min(first + kBlock, count);
    if (CountNonFinite(x + first, end - first) == 0) continue;
    for (std::int64_t i = first; i < end; ++i) {
      if (!IsFinite(x[i])) return i;
    }
  }
  return -1;
}

PACELINE_VECTOR_CLONES
void AdamWLoop(float* weights, float* exp_avg, float* exp_avg_sq, const float* gradients,
               std::int64_t count, const AdamWCoefficients& coefficients) {
  const AdamWCoefficients c = coefficients;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) {
    const AdamWState state = AdamWBody({weights[i], exp_avg[i], exp_avg_sq[i]}, gradients[i], c);
    weights[i] = state.weight;
    exp_avg[i] = state.exp_avg;
    exp_avg_sq[i] = state.exp_avg_sq;
  }
}

}  // namespace

void Fill(Stream& stream, float* y, float value, std::int64_t count) {
  stream.Enqueue([=] { std::fill_n(y, count, value); });
}

void Copy(Stream& stream, float* y, const float* x, std::int64_t count) {
  stream.Enqueue([=] { std::copy_n(x, count, y); });
}

void Add(Stream& stream, float* y, const float* a, const float* b, std::int64_t count) {
  stream.Enqueue([=] { AddLoop(y, a, b, count); });
}

void Scale(Stream& stream, float* y, const float* x, float factor, std::int64_t count) {
  stream.Enqueue([=] { ScaleLoop(y, x, factor, count); });
}

void WidenToFloat64(Stream& stream, double* sum, const float* x, std::int64_t count) {
  stream.Enqueue([=] { WidenLoop(sum, x, count); });
}

void AddToFloat64(Stream& stream, double* sum, const float* x, std::int64_t count) {
  stream.Enqueue([=] { AddWideLoop(sum, x, count); });
}

void RoundToFloat32(Stream& stream, float* y, const double* x, double scale, std::int64_t count) {
  stream.Enqueue([=] { RoundLoop(y, x, scale, count); });
}

void SumOfSquares(Stream& stream, double* sum, const float* x, std::int64_t count) {
  stream.Enqueue([=] { *sum = SquaresLoop(x, count); });
}

void FirstNonFinite(Stream& stream, std::int64_t* index, const float* x, std::int64_t count) {
  stream.Enqueue([=] { *index = FindNonFinite(x, count); });
}

void AdamW(Stream& stream, float* weights, float* exp_avg, float* exp_avg_sq,
           const float* gradients, std::int64_t count, const AdamWCoefficients& coefficients) {
  stream.Enqueue([=] { AdamWLoop(weights, exp_avg, exp_avg_sq, gradients, count, coefficients); });
}

}  // namespace paceline::kernels
