// The CPU's matrix product as a plain function, for kernels that multiply tiles inside one task.
// Invariant: an element of C depends on its row of A, its column of B, alpha, beta and (beta not 0)
// its old value, by one order of fused multiply-adds over k. It depends neither on m and n, nor on
// strides, transposes, or where it stands, nor on the instruction set among SgemmVersions: a
// token's row has equal bits whatever other rows are multiplied with it. beta = 0 does not read C.
// Memory: a thread's first product allocates kSgemmScratchFloats; no later one allocates.
// Threading: any thread; runs on the calling thread alone.
#pragma once

#include <cstdint>
#include <span>

#include "worker/kernels/gemm.h"

namespace paceline::kernels::cpu {

// gemm.h's Gemm at once; options with every leading dimension set.
void Sgemm(float* c, const float* a, const float* b, std::int64_t m, std::int64_t n, std::int64_t k,
           const GemmOptions& options);

// gemm.h's Gemm with m, n, k > 0 and every leading dimension set.
struct SgemmOperands {
  float* c;
  const float* a;
  const float* b;
  std::int64_t m, n, k;
  std::int64_t lda, ldb, ldc;
  bool transpose_a, transpose_b;
  float alpha, beta;
};

// 800 KiB: a panel of B and a block of A (sgemm_blocks.h), whatever the sizes of the product.
inline constexpr std::int64_t kSgemmScratchFloats = 204800;

// The same product compiled for one instruction set. scratch: kSgemmScratchFloats.
struct SgemmVersion {
  const char* name;
  void (*multiply)(const SgemmOperands& operands, float* scratch);
};

// Those that this CPU can run, the fastest first: Sgemm takes that.
std::span<const SgemmVersion> SgemmVersions();

}  // namespace paceline::kernels::cpu
