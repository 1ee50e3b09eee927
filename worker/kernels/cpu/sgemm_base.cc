// The matrix product for the instruction set that all kernels are compiled for.
#include "worker/kernels/cpu/sgemm_blocks.h"

namespace paceline::kernels::cpu {

void MultiplyBase(const SgemmOperands& operands, float* scratch) {
  MultiplyByBlocks(operands, scratch);
}

}  // namespace paceline::kernels::cpu
