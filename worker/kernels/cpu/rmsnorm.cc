#include "worker/kernels/rmsnorm.h"

#include <algorithm>
#include <cmath>

#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

using cpu::Floats;
using cpu::kLanes;

PACELINE_INLINE void NormRow(float* y, float* rstd, const float* x, const float* weight,
                             std::int64_t cols, float eps) {
  const float r = 1.0f / std::sqrt(cpu::Dot(x, x, cols) / static_cast<float>(cols) + eps);
  *rstd = r;
#pragma GCC ivdep
  for (std::int64_t c = 0; c < cols; ++c) y[c] = RmsNormBody(x[c], r, weight[c]);
}

PACELINE_VECTOR_CLONES
void Forward(float* y, float* rstd, const float* x, const float* weight, std::int64_t rows,
             std::int64_t cols, float eps) {
  for (std::int64_t r = 0; r < rows; ++r) {
    NormRow(y + r * cols, rstd + r, x + r * cols, weight, cols, eps);
  }
}

PACELINE_VECTOR_CLONES
void AddForward(float* sum, float* y, float* rstd, const float* a, const float* b,
                const float* weight, std::int64_t rows, std::int64_t cols, float eps) {
  for (std::int64_t r = 0; r < rows; ++r) {
    float* s = sum + r * cols;
#pragma GCC ivdep
    for (std::int64_t c = 0; c < cols; ++c) s[c] = a[r * cols + c] + b[r * cols + c];
    NormRow(y + r * cols, rstd + r, s, weight, cols, eps);
  }
}

// sum_c dy[c] * weight[c] * x[c].
PACELINE_INLINE float WeightedDot(const float* dy, const float* weight, const float* x,
                                  std::int64_t cols) {
  Floats sum = {};
  std::int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    sum += cpu::Load(dy + c) * cpu::Load(weight + c) * cpu::Load(x + c);
  }
  if (c < cols) {
    const std::int64_t left = cols - c;
    sum += cpu::LoadPart(dy + c, left, 0.0f) * cpu::LoadPart(weight + c, left, 0.0f) *
           cpu::LoadPart(x + c, left, 0.0f);
  }
  return cpu::AddLanes(sum);
}

struct BackwardArguments {
  float* dx;
  const float* dy;
  const float* x;
  const float* weight;
  const float* rstd;
  const float* dresidual;
  std::int64_t rows;
  std::int64_t cols;
};

PACELINE_VECTOR_CLONES
void Backward(const BackwardArguments& args) {
  const std::int64_t cols = args.cols;
  const float* weight = args.weight;
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const float* dy = args.dy + r * cols;
    const float* x = args.x + r * cols;
    float* dx = args.dx + r * cols;
    const float rstd = args.rstd[r];
    const float mean = WeightedDot(dy, weight, x, cols) * rstd / static_cast<float>(cols);
    if (args.dresidual == nullptr) {
#pragma GCC ivdep
      for (std::int64_t c = 0; c < cols; ++c) {
        dx[c] = RmsNormBackwardBody(dy[c], weight[c], x[c], rstd, mean);
      }
    } else {
      const float* dresidual = args.dresidual + r * cols;
#pragma GCC ivdep
      for (std::int64_t c = 0; c < cols; ++c) {
        dx[c] = RmsNormBackwardBody(dy[c], weight[c], x[c], rstd, mean) + dresidual[c];
      }
    }
  }
}

PACELINE_VECTOR_CLONES
void WeightGradient(float* dweight, const float* dy, const float* x, const float* rstd,
                    std::int64_t rows, std::int64_t cols) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* dy_row = dy + r * cols;
    const float* x_row = x + r * cols;
    const float scale = rstd[r];
#pragma GCC ivdep
    for (std::int64_t c = 0; c < cols; ++c) {
      dweight[c] = Fma(dy_row[c], x_row[c] * scale, dweight[c]);
    }
  }
}

}  // namespace

void RmsNormForward(Stream& stream, float* y, float* rstd, const float* x, const float* weight,
                    std::int64_t rows, std::int64_t cols, float eps) {
  stream.Enqueue([=] { Forward(y, rstd, x, weight, rows, cols, eps); });
}

void AddRmsNormForward(Stream& stream, float* sum, float* y, float* rstd, const float* a,
                       const float* b, const float* weight, std::int64_t rows, std::int64_t cols,
                       float eps) {
  stream.Enqueue([=] { AddForward(sum, y, rstd, a, b, weight, rows, cols, eps); });
}

void RmsNormBackward(Stream& stream, float* dx, const float* dy, const float* x,
                     const float* weight, const float* rstd, const float* dresidual,
                     std::int64_t rows, std::int64_t cols) {
  const BackwardArguments args{dx, dy, x, weight, rstd, dresidual, rows, cols};
  stream.Enqueue([=] { Backward(args); });
}

void RmsNormWeightGradient(Stream& stream, float* dweight, const float* dy, const float* x,
                           const float* rstd, std::int64_t rows, std::int64_t cols,
                           bool accumulate) {
  stream.Enqueue([=] {
    if (!accumulate) std::fill_n(dweight, cols, 0.0f);
    WeightGradient(dweight, dy, x, rstd, rows, cols);
  });
}

}  // namespace paceline::kernels
