#include "worker/kernels/swiglu.h"

#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

PACELINE_VECTOR_CLONES
void Forward(float* y, const float* gate, const float* up, std::int64_t rows, std::int64_t cols,
             std::int64_t input_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* g = gate + r * input_stride;
    const float* u = up + r * input_stride;
    float* out = y + r * cols;
#pragma GCC ivdep
    for (std::int64_t c = 0; c < cols; ++c) out[c] = Swiglu(g[c], u[c]);
  }
}

PACELINE_VECTOR_CLONES
void Backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
              std::int64_t rows, std::int64_t cols, std::int64_t input_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* g = gate + r * input_stride;
    const float* u = up + r * input_stride;
    const float* d = dy + r * cols;
    float* dg = dgate + r * input_stride;
    float* du = dup + r * input_stride;
#pragma GCC ivdep
    for (std::int64_t c = 0; c < cols; ++c) {
      const SwigluGradient gradient = SwigluBackwardBody(d[c], g[c], u[c]);
      dg[c] = gradient.gate;
      du[c] = gradient.up;
    }
  }
}

}  // namespace

void SwigluForward(Stream& stream, float* y, const float* gate, const float* up, std::int64_t rows,
                   std::int64_t cols, std::int64_t input_stride) {
  stream.Enqueue([=] { Forward(y, gate, up, rows, cols, input_stride); });
}

void SwigluBackward(Stream& stream, float* dgate, float* dup, const float* dy, const float* gate,
                    const float* up, std::int64_t rows, std::int64_t cols,
                    std::int64_t input_stride) {
  stream.Enqueue([=] { Backward(dgate, dup, dy, gate, up, rows, cols, input_stride); });
}

void SwigluForward(Stream& stream, float* y, const float* gate, const float* up,
                   const std::int32_t* rows, std::int64_t cols, std::int64_t input_stride) {
  stream.Enqueue([=] { Forward(y, gate, up, *rows, cols, input_stride); });
}

void SwigluBackward(Stream& stream, float* dgate, float* dup, const float* dy, const float* gate,
                    const float* up, const std::int32_t* rows, std::int64_t cols,
                    std::int64_t input_stride) {
  stream.Enqueue([=] { Backward(dgate, dup, dy, gate, up, *rows, cols, input_stride); });
}

}  // namespace paceline::kernels
