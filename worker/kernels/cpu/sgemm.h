// The CPU's matrix product as a plain function, for kernels that multiply tiles inside one task.
// Invariant: runs on the calling thread alone. beta = 0 does not read C.
// Threading: any thread.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "worker/kernels/gemm.h"

namespace paceline::kernels::cpu {

// gemm.h's Gemm at once; options with every leading dimension set.
// kResourceExhausted: the library found no memory for its packed panels.
absl::Status Sgemm(float* c, const float* a, const float* b, std::int64_t m, std::int64_t n,
                   std::int64_t k, const GemmOptions& options);

}  // namespace paceline::kernels::cpu
