#include "worker/kernels/dispatch.h"

#include <algorithm>

#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

void Sort(std::int32_t* offsets, std::int32_t* row, std::int32_t* assignment,
          const std::int32_t* expert, std::int64_t assignments, std::int64_t experts) {
  std::fill_n(offsets, experts + 1, 0);
  for (std::int64_t a = 0; a < assignments; ++a) ++offsets[expert[a] + 1];
  for (std::int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  // offsets[e] serves as expert e's cursor; at the end it stands where expert e + 1 begins.
  for (std::int64_t a = 0; a < assignments; ++a) {
    const std::int32_t p = offsets[expert[a]]++;
    row[a] = p;
    assignment[p] = static_cast<std::int32_t>(a);
  }
  std::copy_backward(offsets, offsets + experts, offsets + experts + 1);
  offsets[0] = 0;
}

// y[t] = base[t] + sum_k weight * x[row[t, k]], with `weights` null for ones.
PACELINE_VECTOR_CLONES
void SumOverExperts(float* y, const float* x, const std::int32_t* row, const float* weights,
                    const float* base, std::int64_t tokens, std::int64_t top_k, std::int64_t cols) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* out = y + t * cols;
    if (base == nullptr) {
      std::fill_n(out, cols, 0.0f);
    } else if (base != y) {
      std::copy_n(base + t * cols, cols, out);
    }
    for (std::int64_t a = t * top_k; a < (t + 1) * top_k; ++a) {
      const float weight = weights == nullptr ? 1.0f : weights[a];
      const float* in = x + row[a] * cols;
#pragma GCC ivdep
      for (std::int64_t c = 0; c < cols; ++c) out[c] = Fma(weight, in[c], out[c]);
    }
  }
}

PACELINE_VECTOR_CLONES
void CombineGradients(float* dx, float* dweights, const float* dy, const float* x,
                      const std::int32_t* row, const float* weights, std::int64_t tokens,
                      std::int64_t top_k, std::int64_t cols) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* gradient = dy + t * cols;
    for (std::int64_t a = t * top_k; a < (t + 1) * top_k; ++a) {
      const std::int64_t first = row[a] * cols;
      dweights[a] = cpu::Dot(gradient, x + first, cols);
      const float weight = weights[a];
      float* out = dx + first;
#pragma GCC ivdep
      for (std::int64_t c = 0; c < cols; ++c) out[c] = weight * gradient[c];
    }
  }
}

}  // namespace

void SortByExpert(Stream& stream, std::int32_t* offsets, std::int32_t* row,
                  std::int32_t* assignment, const std::int32_t* expert, std::int64_t assignments,
                  std::int64_t experts) {
  stream.Enqueue([=] { Sort(offsets, row, assignment, expert, assignments, experts); });
}

void CountExpertTokens(Stream& stream, std::int64_t* counts, const std::int32_t* offsets,
                       std::int64_t experts) {
  stream.Enqueue([=] {
    for (std::int64_t e = 0; e < experts; ++e) counts[e] += offsets[e + 1] - offsets[e];
  });
}

void GatherRows(Stream& stream, float* out, const float* x, const std::int32_t* assignment,
                std::int64_t tokens, std::int64_t top_k, std::int64_t cols) {
  stream.Enqueue([=] {
    for (std::int64_t p = 0; p < tokens * top_k; ++p) {
      std::copy_n(x + assignment[p] / top_k * cols, cols, out + p * cols);
    }
  });
}

void GatherRowsBackward(Stream& stream, float* dx, const float* dout, const std::int32_t* row,
                        const float* base, std::int64_t tokens, std::int64_t top_k,
                        std::int64_t cols) {
  stream.Enqueue([=] { SumOverExperts(dx, dout, row, nullptr, base, tokens, top_k, cols); });
}

void CombineForward(Stream& stream, float* y, const float* x, const std::int32_t* row,
                    const float* weights, const float* base, std::int64_t tokens,
                    std::int64_t top_k, std::int64_t cols) {
  stream.Enqueue([=] { SumOverExperts(y, x, row, weights, base, tokens, top_k, cols); });
}

void CombineBackward(Stream& stream, float* dx, float* dweights, const float* dy, const float* x,
                     const std::int32_t* row, const float* weights, std::int64_t tokens,
                     std::int64_t top_k, std::int64_t cols) {
  stream.Enqueue([=] { CombineGradients(dx, dweights, dy, x, row, weights, tokens, top_k, cols); });
}

void MoveRowBlocks(Stream& stream, float* y, const std::int32_t* y_start, const float* x,
                   const std::int32_t* x_start, const std::int32_t* block_rows, std::int64_t blocks,
                   std::int64_t cols) {
  stream.Enqueue([=] {
    for (std::int64_t b = 0; b < blocks; ++b) {
      std::copy_n(x + x_start[b] * cols, block_rows[b] * cols, y + y_start[b] * cols);
    }
  });
}

}  // namespace paceline::kernels
