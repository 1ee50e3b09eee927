// The launchers of the CUDA kernels: what a CUDA stream enqueues where the CPU's streams run the
// functions of worker/kernels/*.h. Element-wise and row-wise kernels only; their arithmetic is
// worker/kernels/rowwise_body.h, the CPU's own. Names, shapes and formulas are those of the
// headers one folder up; pointers are device memory.
// Compiled for every GPU of CMAKE_CUDA_ARCHITECTURES where nvcc is found. No test runs them.
// Invariant: reductions run in a fixed order (lanes of a warp, warps of a block, blocks of a
// grid; no floating-point atomics), so equal input gives equal bits on one GPU model. Sums over
// rows differ from the CPU's in their last bits, as the lanes are 32 and not 16.
// Threading: any thread; work on one stream runs in order.
// Errors: a cudaError_t as int, 0 is success. An empty range launches nothing.
#pragma once

#include <cstdint>

#include "worker/kernels/adamw_coefficients.h"

namespace paceline::kernels::cuda {

using CudaStream = void*;  // a cudaStream_t

// elementwise.h
int Fill(CudaStream stream, float* y, float value, std::int64_t count);
int Copy(CudaStream stream, float* y, const float* x, std::int64_t count);
int Add(CudaStream stream, float* y, const float* a, const float* b, std::int64_t count);
int Scale(CudaStream stream, float* y, const float* x, float factor, std::int64_t count);
int WidenToFloat64(CudaStream stream, double* sum, const float* x, std::int64_t count);
int AddToFloat64(CudaStream stream, double* sum, const float* x, std::int64_t count);
int RoundToFloat32(CudaStream stream, float* y, const double* x, double scale, std::int64_t count);
// workspace: kSumOfSquaresWorkspace float64.
inline constexpr std::int64_t kSumOfSquaresWorkspace = 1024;
int SumOfSquares(CudaStream stream, double* sum, const float* x, double* workspace,
                 std::int64_t count);
int FirstNonFinite(CudaStream stream, std::int64_t* index, const float* x, std::int64_t count);
int AdamW(CudaStream stream, float* weights, float* exp_avg, float* exp_avg_sq,
          const float* gradients, std::int64_t count, const AdamWCoefficients& coefficients);

// rmsnorm.h
int RmsNormForward(CudaStream stream, float* y, float* rstd, const float* x, const float* weight,
                   std::int64_t rows, std::int64_t cols, float eps);
int AddRmsNormForward(CudaStream stream, float* sum, float* y, float* rstd, const float* a,
                      const float* b, const float* weight, std::int64_t rows, std::int64_t cols,
                      float eps);
int RmsNormBackward(CudaStream stream, float* dx, const float* dy, const float* x,
                    const float* weight, const float* rstd, const float* dresidual,
                    std::int64_t rows, std::int64_t cols);
int RmsNormWeightGradient(CudaStream stream, float* dweight, const float* dy, const float* x,
                          const float* rstd, std::int64_t rows, std::int64_t cols, bool accumulate);

// rope.h
int RopeForward(CudaStream stream, float* x, const float* cosines, const float* sines,
                std::int64_t rows, std::int64_t sequence, std::int64_t heads, std::int64_t head_dim,
                std::int64_t row_stride);
int RopeBackward(CudaStream stream, float* dx, const float* cosines, const float* sines,
                 std::int64_t rows, std::int64_t sequence, std::int64_t heads,
                 std::int64_t head_dim, std::int64_t row_stride);

// swiglu.h
int SwigluForward(CudaStream stream, float* y, const float* gate, const float* up,
                  std::int64_t rows, std::int64_t cols, std::int64_t input_stride);
int SwigluBackward(CudaStream stream, float* dgate, float* dup, const float* dy, const float* gate,
                   const float* up, std::int64_t rows, std::int64_t cols,
                   std::int64_t input_stride);

// cross_entropy.h; row_losses: workspace of `rows` float64.
int CrossEntropyForward(CudaStream stream, double* loss_sum, const float* logits,
                        const std::int32_t* targets, double* row_losses, std::int64_t rows,
                        std::int64_t vocab);
int CrossEntropyForwardBackward(CudaStream stream, double* loss_sum, float* logits,
                                const std::int32_t* targets, double* row_losses, std::int64_t rows,
                                std::int64_t vocab, float scale);

}  // namespace paceline::kernels::cuda
