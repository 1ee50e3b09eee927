#include "worker/kernels/gemm.h"

#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <string>

#include "common/check.h"
#include "common/status.h"
#include "worker/kernels/cpu/sgemm.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

// C = beta * C without a product to add; beta = 0 must also replace NaN.
void ScaleRows(float* c, std::int64_t m, std::int64_t n, std::int64_t ldc, float beta) {
  for (std::int64_t i = 0; i < m; ++i) {
    float* row = c + i * ldc;
    if (beta == 0.0f) {
      std::fill(row, row + n, 0.0f);
    } else if (beta != 1.0f) {
      for (std::int64_t j = 0; j < n; ++j) row[j] *= beta;
    }
  }
}

// The leading dimensions that 0 stands for.
GemmOptions WithLeadingDimensions(GemmOptions options, std::int64_t m, std::int64_t n,
                                  std::int64_t k) {
  if (options.lda == 0) options.lda = options.transpose_a ? m : k;
  if (options.ldb == 0) options.ldb = options.transpose_b ? k : n;
  if (options.ldc == 0) options.ldc = n;
  return options;
}

}  // namespace

namespace cpu {

absl::Status Sgemm(float* c, const float* a, const float* b, std::int64_t m, std::int64_t n,
                   std::int64_t k, const GemmOptions& options) {
  if (m == 0 || n == 0) return absl::OkStatus();
  if (k == 0 || options.alpha == 0.0f) {
    ScaleRows(c, m, n, options.ldc, options.beta);
    return absl::OkStatus();
  }
  // The library splits its work over OpenMP threads. The count is a property of the calling
  // thread, so it is set here, where the thread is known; one rank is one compute thread.
  thread_local const bool single_threaded = (omp_set_num_threads(1), true);
  static_cast<void>(single_threaded);
  const dnnl_status_t status =
      dnnl_sgemm(options.transpose_a ? 'T' : 'N', options.transpose_b ? 'T' : 'N', m, n, k,
                 options.alpha, a, options.lda, b, options.ldb, options.beta, c, options.ldc);
  if (status == dnnl_success) [[likely]] {
    return absl::OkStatus();
  }
  const std::string product = std::to_string(m) + " x " + std::to_string(n) + " x " +
                              std::to_string(k) + " (leading dimensions " +
                              std::to_string(options.lda) + ", " + std::to_string(options.ldb) +
                              ", " + std::to_string(options.ldc) + ")";
  if (status == dnnl_out_of_memory) {
    return absl::ResourceExhaustedError("no memory for the matrix product " + product);
  }
  return absl::InternalError("dnnl_sgemm refused the matrix product " + product + ": status " +
                             std::to_string(status));
}

}  // namespace cpu

void Gemm(Stream& stream, float* c, const float* a, const float* b, std::int64_t m, std::int64_t n,
          std::int64_t k, const GemmOptions& options) {
  const GemmOptions full = WithLeadingDimensions(options, m, n, k);
  stream.Enqueue([=] { return cpu::Sgemm(c, a, b, m, n, k, full); });
}

void GroupedGemm(Stream& stream, float* c, const float* a, const float* b,
                 const std::int32_t* offsets, std::int64_t n, std::int64_t k, std::int64_t stride_b,
                 const GroupedGemmOptions& options) {
  const std::int32_t experts = options.experts;
  const GemmOptions full = WithLeadingDimensions({.transpose_b = options.transpose_b,
                                                  .alpha = options.alpha,
                                                  .beta = options.beta,
                                                  .lda = options.lda,
                                                  .ldb = options.ldb,
                                                  .ldc = options.ldc},
                                                 0, n, k);
  stream.Enqueue([=]() -> absl::Status {
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t first = offsets[e];
      RETURN_IF_ERROR(cpu::Sgemm(c + first * full.ldc, a + first * full.lda, b + e * stride_b,
                                 offsets[e + 1] - first, n, k, full));
    }
    return absl::OkStatus();
  });
}

void GroupedGemmWeights(Stream& stream, float* c, const float* a, const float* b,
                        const std::int32_t* offsets, std::int64_t m, std::int64_t n,
                        std::int64_t stride_c, const GroupedGemmOptions& options) {
  PACELINE_CHECK(!options.transpose_b);
  const std::int32_t experts = options.experts;
  const GemmOptions full = WithLeadingDimensions({.transpose_a = true,
                                                  .alpha = options.alpha,
                                                  .beta = options.beta,
                                                  .lda = options.lda,
                                                  .ldb = options.ldb,
                                                  .ldc = options.ldc},
                                                 m, n, 0);
  stream.Enqueue([=]() -> absl::Status {
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t first = offsets[e];
      RETURN_IF_ERROR(cpu::Sgemm(c + e * stride_c, a + first * full.lda, b + first * full.ldb, m, n,
                                 offsets[e + 1] - first, full));
    }
    return absl::OkStatus();
  });
}

}  // namespace paceline::kernels
