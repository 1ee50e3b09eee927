#include "worker/kernels/gemm.h"

#include "common/check.h"
#include "worker/kernels/cpu/sgemm.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

// The leading dimensions that 0 stands for.
GemmOptions WithLeadingDimensions(GemmOptions options, std::int64_t m, std::int64_t n,
                                  std::int64_t k) {
  if (options.lda == 0) options.lda = options.transpose_a ? m : k;
  if (options.ldb == 0) options.ldb = options.transpose_b ? k : n;
  if (options.ldc == 0) options.ldc = n;
  return options;
}

}  // namespace

void Gemm(Stream& stream, float* c, const float* a, const float* b, std::int64_t m, std::int64_t n,
          std::int64_t k, const GemmOptions& options) {
  const GemmOptions full = WithLeadingDimensions(options, m, n, k);
  stream.Enqueue([=] { cpu::Sgemm(c, a, b, m, n, k, full); });
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
  stream.Enqueue([=] {
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t first = offsets[e];
      cpu::Sgemm(c + first * full.ldc, a + first * full.lda, b + e * stride_b,
                 offsets[e + 1] - first, n, k, full);
    }
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
  stream.Enqueue([=] {
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t first = offsets[e];
      cpu::Sgemm(c + e * stride_c, a + first * full.lda, b + first * full.ldb, m, n,
                 offsets[e + 1] - first, full);
    }
  });
}

}  // namespace paceline::kernels
