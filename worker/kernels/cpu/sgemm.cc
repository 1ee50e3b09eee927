#include "worker/kernels/cpu/sgemm.h"

#include <algorithm>
#include <memory>

namespace paceline::kernels::cpu {

void MultiplyBase(const SgemmOperands& operands, float* scratch);
void MultiplyAvx512(const SgemmOperands& operands, float* scratch);

namespace {

struct alignas(64) Scratch {
  float floats[kSgemmScratchFloats];
};

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

}  // namespace

std::span<const SgemmVersion> SgemmVersions() {
#if defined(__x86_64__)
  static constexpr SgemmVersion kVersions[] = {{"x86-64-v4", MultiplyAvx512},
                                               {"x86-64-v3", MultiplyBase}};
  const std::span<const SgemmVersion> versions(kVersions);
  return __builtin_cpu_supports("x86-64-v4") ? versions : versions.subspan(1);
#else
  static constexpr SgemmVersion kVersions[] = {{"base", MultiplyBase}};
  return kVersions;
#endif
}

void Sgemm(float* c, const float* a, const float* b, std::int64_t m, std::int64_t n, std::int64_t k,
           const GemmOptions& options) {
  if (m == 0 || n == 0) return;
  if (k == 0 || options.alpha == 0.0f) {
    ScaleRows(c, m, n, options.ldc, options.beta);
    return;
  }
  static const SgemmVersion version = SgemmVersions().front();
  thread_local const auto scratch = std::make_unique_for_overwrite<Scratch>();
  version.multiply({c, a, b, m, n, k, options.lda, options.ldb, options.ldc, options.transpose_a,
                    options.transpose_b, options.alpha, options.beta},
                   scratch->floats);
}

}  // namespace paceline::kernels::cpu
