// Row-wise kernels. RMSNorm and cross-entropy: one block a row. RoPE and SwiGLU: one thread a
// pair or an element, several rows a block. Reference: ../cpu/{rmsnorm,rope,swiglu,
// cross_entropy}.cc.
#include <cuda_runtime.h>

#include <cstdint>

#include "worker/kernels/cuda/device.cuh"
#include "worker/kernels/cuda/launch.h"
#include "worker/kernels/rowwise_body.h"

namespace paceline::kernels::cuda {
namespace {

cudaStream_t Of(CudaStream stream) { return static_cast<cudaStream_t>(stream); }

// y = x * rstd * weight. With `b` the row is a + b first, and goes to `sum`.
__global__ void RmsNormForwardKernel(float* sum, float* y, float* rstd, const float* a,
                                     const float* b, const float* weight, std::int64_t rows,
                                     std::int64_t cols, float eps) {
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const float* x = a + r * cols;
    float squares = 0;
    for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) {
      const float value = b == nullptr ? x[c] : x[c] + b[r * cols + c];
      if (b != nullptr) sum[r * cols + c] = value;
      squares += value * value;
    }
    squares = BlockReduce(squares, Plus());
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(cols) + eps);
    if (threadIdx.x == 0) rstd[r] = scale;
    // Each thread reads back what it wrote itself, so `sum` needs no barrier.
    const float* row = b == nullptr ? x : sum + r * cols;
    for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) {
      y[r * cols + c] = RmsNormBody(row[c], scale, weight[c]);
    }
  }
}

__global__ void RmsNormBackwardKernel(float* dx, const float* dy, const float* x,
                                      const float* weight, const float* rstd,
                                      const float* dresidual, std::int64_t rows,
                                      std::int64_t cols) {
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const std::int64_t first = r * cols;
    const float scale = rstd[r];
    float dot = 0;
    for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) {
      dot += dy[first + c] * weight[c] * x[first + c];
    }
    const float mean = BlockReduce(dot, Plus()) * scale / static_cast<float>(cols);
    for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) {
      const float gradient =
          RmsNormBackwardBody(dy[first + c], weight[c], x[first + c], scale, mean);
      dx[first + c] = dresidual == nullptr ? gradient : gradient + dresidual[first + c];
    }
  }
}

// A block has 32 columns and kWarpsPerBlock rows at a time: warp w adds up rows w, w + 8, ... and
// the warps' sums are added in their order.
__global__ void RmsNormWeightGradientKernel(float* dweight, const float* dy, const float* x,
                                            const float* rstd, std::int64_t rows, std::int64_t cols,
                                            bool accumulate) {
  __shared__ float sums[kWarpsPerBlock][kWarp];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0;
  if (c < cols) {
    for (std::int64_t r = warp; r < rows; r += kWarpsPerBlock) {
      sum = Fma(dy[r * cols + c], x[r * cols + c] * rstd[r], sum);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= cols) return;
  float total = accumulate ? dweight[c] : 0.0f;
  for (int w = 0; w < kWarpsPerBlock; ++w) total += sums[w][lane];
  dweight[c] = total;
}

struct RopeArguments {
  float* x;
  const float* cosines;
  const float* sines;
  std::int64_t rows;
  std::int64_t sequence;
  std::int64_t heads;
  std::int64_t half;  // head_dim / 2
  std::int64_t row_stride;
  float sign;  // 1 rotates forward, -1 back
};

__global__ void RopeKernel(RopeArguments args) {
  const std::int64_t pairs = args.heads * args.half;
  const std::int64_t count = args.rows * pairs;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t p = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; p < count;
       p += step) {
    const std::int64_t row = p / pairs;
    const std::int64_t head = p % pairs / args.half;
    const std::int64_t i = p % args.half;
    const std::int64_t angle = row % args.sequence * args.half + i;
    float* first = args.x + row * args.row_stride + head * 2 * args.half + i;
    float* second = first + args.half;
    const RopePair pair =
        RopeBody(*first, *second, args.cosines[angle], args.sign * args.sines[angle]);
    *first = pair.first;
    *second = pair.second;
  }
}

int Rope(CudaStream stream, const RopeArguments& args) {
  const std::int64_t count = args.rows * args.heads * args.half;
  if (count == 0) return cudaSuccess;
  RopeKernel<<<Blocks(count, kThreads), kThreads, 0, Of(stream)>>>(args);
  return cudaGetLastError();
}

__global__ void SwigluForwardKernel(float* y, const float* gate, const float* up,
                                    std::int64_t count, std::int64_t cols,
                                    std::int64_t input_stride) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const std::int64_t in = i / cols * input_stride + i % cols;
    y[i] = Swiglu(gate[in], up[in]);
  }
}

__global__ void SwigluBackwardKernel(float* dgate, float* dup, const float* dy, const float* gate,
                                     const float* up, std::int64_t count, std::int64_t cols,
                                     std::int64_t input_stride) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const std::int64_t in = i / cols * input_stride + i % cols;
    const SwigluGradient gradient = SwigluBackwardBody(dy[i], gate[in], up[in]);
    dgate[in] = gradient.gate;
    dup[in] = gradient.up;
  }
}

// row_losses[r]; with `gradients` (the logits themselves) also scale * (softmax - one-hot).
__global__ void CrossEntropyKernel(double* row_losses, float* gradients, const float* logits,
                                   const std::int32_t* targets, std::int64_t rows,
                                   std::int64_t vocab, float scale) {
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const float* x = logits + r * vocab;
    const std::int32_t target = targets[r];
    const float target_logit = x[target];
    float maximum = FloatOf(0xff800000u);  // -inf
    for (std::int64_t c = threadIdx.x; c < vocab; c += kThreads) {
      maximum = x[c] > maximum ? x[c] : maximum;
    }
    // Its barriers also keep the target's logit from being overwritten before all have read it.
    maximum = BlockReduce(maximum, Larger());
    float sum = 0;
    for (std::int64_t c = threadIdx.x; c < vocab; c += kThreads) sum += Exp(x[c] - maximum);
    sum = BlockReduce(sum, Plus());
    if (threadIdx.x == 0) {
      row_losses[r] = static_cast<double>(maximum) - static_cast<double>(target_logit) +
                      log(static_cast<double>(sum));
    }
    if (gradients == nullptr) continue;
    const float factor = scale / sum;
    for (std::int64_t c = threadIdx.x; c < vocab; c += kThreads) {
      const float softmax = Exp(x[c] - maximum) * factor;
      gradients[r * vocab + c] = c == target ? softmax - scale : softmax;
    }
  }
}

__global__ void AddRowLossesKernel(double* loss_sum, const double* row_losses, std::int64_t rows) {
  double sum = 0;
  for (std::int64_t r = threadIdx.x; r < rows; r += kThreads) sum += row_losses[r];
  sum = BlockReduce(sum, Plus());
  if (threadIdx.x == 0) *loss_sum += sum;
}

int CrossEntropy(CudaStream stream, double* loss_sum, float* gradients, const float* logits,
                 const std::int32_t* targets, double* row_losses, std::int64_t rows,
                 std::int64_t vocab, float scale) {
  if (rows == 0) return cudaSuccess;
  CrossEntropyKernel<<<Blocks(rows, 1), kThreads, 0, Of(stream)>>>(row_losses, gradients, logits,
                                                                   targets, rows, vocab, scale);
  AddRowLossesKernel<<<1, kThreads, 0, Of(stream)>>>(loss_sum, row_losses, rows);
  return cudaGetLastError();
}

}  // namespace

int RmsNormForward(CudaStream stream, float* y, float* rstd, const float* x, const float* weight,
                   std::int64_t rows, std::int64_t cols, float eps) {
  return AddRmsNormForward(stream, nullptr, y, rstd, x, nullptr, weight, rows, cols, eps);
}

int AddRmsNormForward(CudaStream stream, float* sum, float* y, float* rstd, const float* a,
                      const float* b, const float* weight, std::int64_t rows, std::int64_t cols,
                      float eps) {
  if (rows == 0) return cudaSuccess;
  RmsNormForwardKernel<<<Blocks(rows, 1), kThreads, 0, Of(stream)>>>(sum, y, rstd, a, b, weight,
                                                                     rows, cols, eps);
  return cudaGetLastError();
}

int RmsNormBackward(CudaStream stream, float* dx, const float* dy, const float* x,
                    const float* weight, const float* rstd, const float* dresidual,
                    std::int64_t rows, std::int64_t cols) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  RmsNormBackwardKernel<<<Blocks(rows, 1), kThreads, 0, Of(stream)>>>(dx, dy, x, weight, rstd,
                                                                      dresidual, rows, cols);
  return cudaGetLastError();
}

int RmsNormWeightGradient(CudaStream stream, float* dweight, const float* dy, const float* x,
                          const float* rstd, std::int64_t rows, std::int64_t cols,
                          bool accumulate) {
  if (cols == 0) return cudaSuccess;
  RmsNormWeightGradientKernel<<<static_cast<unsigned>((cols + kWarp - 1) / kWarp), kThreads, 0,
                                Of(stream)>>>(dweight, dy, x, rstd, rows, cols, accumulate);
  return cudaGetLastError();
}

int RopeForward(CudaStream stream, float* x, const float* cosines, const float* sines,
                std::int64_t rows, std::int64_t sequence, std::int64_t heads, std::int64_t head_dim,
                std::int64_t row_stride) {
  return Rope(stream, {x, cosines, sines, rows, sequence, heads, head_dim / 2, row_stride, 1.0f});
}

int RopeBackward(CudaStream stream, float* dx, const float* cosines, const float* sines,
                 std::int64_t rows, std::int64_t sequence, std::int64_t heads,
                 std::int64_t head_dim, std::int64_t row_stride) {
  return Rope(stream, {dx, cosines, sines, rows, sequence, heads, head_dim / 2, row_stride, -1.0f});
}

int SwigluForward(CudaStream stream, float* y, const float* gate, const float* up,
                  std::int64_t rows, std::int64_t cols, std::int64_t input_stride) {
  const std::int64_t count = rows * cols;
  if (count == 0) return cudaSuccess;
  SwigluForwardKernel<<<Blocks(count, kThreads), kThreads, 0, Of(stream)>>>(y, gate, up, count,
                                                                            cols, input_stride);
  return cudaGetLastError();
}

int SwigluBackward(CudaStream stream, float* dgate, float* dup, const float* dy, const float* gate,
                   const float* up, std::int64_t rows, std::int64_t cols,
                   std::int64_t input_stride) {
  const std::int64_t count = rows * cols;
  if (count == 0) return cudaSuccess;
  SwigluBackwardKernel<<<Blocks(count, kThreads), kThreads, 0, Of(stream)>>>(
      dgate, dup, dy, gate, up, count, cols, input_stride);
  return cudaGetLastError();
}

int CrossEntropyForward(CudaStream stream, double* loss_sum, const float* logits,
                        const std::int32_t* targets, double* row_losses, std::int64_t rows,
                        std::int64_t vocab) {
  return CrossEntropy(stream, loss_sum, nullptr, logits, targets, row_losses, rows, vocab, 0.0f);
}

int CrossEntropyForwardBackward(CudaStream stream, double* loss_sum, float* logits,
                                const std::int32_t* targets, double* row_losses, std::int64_t rows,
                                std::int64_t vocab, float scale) {
  return CrossEntropy(stream, loss_sum, logits, logits, targets, row_losses, rows, vocab, scale);
}

}  // namespace paceline::kernels::cuda
