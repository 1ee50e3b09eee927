// The matrix product for x86-64-v4. Nothing here may run before sgemm.cc has asked the CPU.
#include "worker/kernels/cpu/sgemm_blocks.h"

namespace paceline::kernels::cpu {

void MultiplyAvx512(const SgemmOperands& operands, float* scratch) {
  MultiplyByBlocks(operands, scratch);
}

}  // namespace paceline::kernels::cpu
