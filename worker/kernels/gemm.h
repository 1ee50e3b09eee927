// Matrix products, float32, row-major. All of them may be empty in any dimension: with k = 0 the
// product is zero, so C = beta * C.
// Invariant: with beta = 0 C is written without being read (a NaN left in it does not survive).
// An element's bits depend on its row of A, its column of B, alpha, beta and (beta not 0) its old
// value alone: not on the other rows and columns, nor on strides and transposes (cpu/sgemm.h). So
// a token's row has equal bits whichever tokens share its batch or its expert.
// Threading: a call belongs to the stream's thread; several streams may multiply at once.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

struct GemmOptions {
  bool transpose_a = false;
  bool transpose_b = false;
  float alpha = 1.0f;
  float beta = 0.0f;
  // Elements between two rows as stored; 0: the rows lie dense.
  std::int64_t lda = 0;
  std::int64_t ldb = 0;
  std::int64_t ldc = 0;
};

// C = alpha * op(A) op(B) + beta * C.  C: (m, n); op(A): (m, k), so A is stored (m, k), or
// (k, m) with transpose_a; op(B): (k, n), so B is stored (k, n), or (n, k) with transpose_b.
// C overlaps neither A nor B. A linear layer with Hugging Face's weight W (out, in):
//   forward          y (T, out)   = x W^T     Gemm(y, x, W, T, out, in, {.transpose_b = true})
//   input gradient   dx (T, in)   = dy W      Gemm(dx, dy, W, T, in, out)
//   weight gradient  dW (out, in) = dy^T x    Gemm(dW, dy, x, out, in, T, {.transpose_a = true})
void Gemm(Stream& stream, float* c, const float* a, const float* b, std::int64_t m, std::int64_t n,
          std::int64_t k, const GemmOptions& options = {});

// The experts' products. Rows of A and C are sorted by expert: expert e has the rows
// [offsets[e], offsets[e + 1]) (dispatch.h), offsets[0] = 0. B's matrix of expert e begins at
// b + e * stride_b. offsets is read when the stream gets here.
struct GroupedGemmOptions {
  std::int32_t experts = 0;
  bool transpose_b = false;
  float alpha = 1.0f;
  float beta = 0.0f;
  std::int64_t lda = 0;  // as in GemmOptions
  std::int64_t ldb = 0;
  std::int64_t ldc = 0;
};

// For each expert e: C_e = alpha * A_e op(B_e) + beta * C_e.  C_e: (rows_e, n); A_e: (rows_e, k);
// op(B_e): (k, n). Rows of no expert are not touched.
void GroupedGemm(Stream& stream, float* c, const float* a, const float* b,
                 const std::int32_t* offsets, std::int64_t n, std::int64_t k, std::int64_t stride_b,
                 const GroupedGemmOptions& options);

// The experts' weight gradients. For each expert e: C_e = alpha * A_e^T B_e + beta * C_e.
// C_e: (m, n), at c + e * stride_c; A_e: (rows_e, m); B_e: (rows_e, n). An expert without rows
// gets C_e = beta * C_e, so with beta = 0 its gradient is zero. transpose_b must be false.
void GroupedGemmWeights(Stream& stream, float* c, const float* a, const float* b,
                        const std::int32_t* offsets, std::int64_t m, std::int64_t n,
                        std::int64_t stride_c, const GroupedGemmOptions& options);

}  // namespace paceline::kernels
