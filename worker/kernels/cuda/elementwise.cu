// Element-wise kernels, one thread an element. Reference: ../cpu/elementwise.cc.
#include <cuda_runtime.h>

#include <cstdint>

#include "worker/kernels/cuda/device.cuh"
#include "worker/kernels/cuda/launch.h"
#include "worker/kernels/rowwise_body.h"

namespace paceline::kernels::cuda {
namespace {

template <typename Body>
__global__ void ForEachKernel(Body body, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    body(i);
  }
}

template <typename Body>
int ForEach(CudaStream stream, std::int64_t count, Body body) {
  if (count == 0) return cudaSuccess;
  ForEachKernel<<<Blocks(count, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(body,
                                                                                             count);
  return cudaGetLastError();
}

struct FillBody {
  float* y;
  float value;
  __device__ void operator()(std::int64_t i) const { y[i] = value; }
};

struct AddBody {
  float* y;
  const float* a;
  const float* b;
  __device__ void operator()(std::int64_t i) const { y[i] = a[i] + b[i]; }
};

struct ScaleBody {
  float* y;
  const float* x;
  float factor;
  __device__ void operator()(std::int64_t i) const { y[i] = factor * x[i]; }
};

struct WidenBody {
  double* sum;
  const float* x;
  __device__ void operator()(std::int64_t i) const { sum[i] = x[i]; }
};

struct AddWideBody {
  double* sum;
  const float* x;
  __device__ void operator()(std::int64_t i) const { sum[i] += x[i]; }
};

struct RoundBody {
  float* y;
  const double* x;
  double scale;
  __device__ void operator()(std::int64_t i) const { y[i] = static_cast<float>(scale * x[i]); }
};

struct AdamWUpdate {
  float* weights;
  float* exp_avg;
  float* exp_avg_sq;
  const float* gradients;
  AdamWCoefficients coefficients;
  __device__ void operator()(std::int64_t i) const {
    const AdamWState state =
        AdamWBody({weights[i], exp_avg[i], exp_avg_sq[i]}, gradients[i], coefficients);
    weights[i] = state.weight;
    exp_avg[i] = state.exp_avg;
    exp_avg_sq[i] = state.exp_avg_sq;
  }
};

struct FindNonFinite {
  unsigned long long* index;
  const float* x;
  __device__ void operator()(std::int64_t i) const {
    // The least index wins in whatever order they come; -1 is the largest unsigned number.
    if (!IsFinite(x[i])) atomicMin(index, static_cast<unsigned long long>(i));
  }
};

// partial[b]: the squares of block b's elements, each thread its own in rising order.
__global__ void SquaresKernel(double* partial, const float* x, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  double sum = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const double v = x[i];
    sum += v * v;
  }
  sum = BlockReduce(sum, Plus());
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void SumKernel(double* total, const double* partial, int count) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = BlockReduce(sum, Plus());
  if (threadIdx.x == 0) *total = sum;
}

}  // namespace

int Fill(CudaStream stream, float* y, float value, std::int64_t count) {
  return ForEach(stream, count, FillBody{y, value});
}

int Copy(CudaStream stream, float* y, const float* x, std::int64_t count) {
  return cudaMemcpyAsync(y, x, count * sizeof(float), cudaMemcpyDeviceToDevice,
                         static_cast<cudaStream_t>(stream));
}

int Add(CudaStream stream, float* y, const float* a, const float* b, std::int64_t count) {
  return ForEach(stream, count, AddBody{y, a, b});
}

int Scale(CudaStream stream, float* y, const float* x, float factor, std::int64_t count) {
  return ForEach(stream, count, ScaleBody{y, x, factor});
}

int WidenToFloat64(CudaStream stream, double* sum, const float* x, std::int64_t count) {
  return ForEach(stream, count, WidenBody{sum, x});
}

int AddToFloat64(CudaStream stream, double* sum, const float* x, std::int64_t count) {
  return ForEach(stream, count, AddWideBody{sum, x});
}

int RoundToFloat32(CudaStream stream, float* y, const double* x, double scale, std::int64_t count) {
  return ForEach(stream, count, RoundBody{y, x, scale});
}

int SumOfSquares(CudaStream stream, double* sum, const float* x, double* workspace,
                 std::int64_t count) {
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  // Always the whole workspace, so that the order depends on the count alone.
  SquaresKernel<<<kSumOfSquaresWorkspace, kThreads, 0, cuda_stream>>>(workspace, x, count);
  SumKernel<<<1, kThreads, 0, cuda_stream>>>(sum, workspace, kSumOfSquaresWorkspace);
  return cudaGetLastError();
}

int FirstNonFinite(CudaStream stream, std::int64_t* index, const float* x, std::int64_t count) {
  const cudaError_t cleared =
      cudaMemsetAsync(index, 0xff, sizeof(*index), static_cast<cudaStream_t>(stream));
  if (cleared != cudaSuccess) return cleared;
  return ForEach(stream, count, FindNonFinite{reinterpret_cast<unsigned long long*>(index), x});
}

int AdamW(CudaStream stream, float* weights, float* exp_avg, float* exp_avg_sq,
          const float* gradients, std::int64_t count, const AdamWCoefficients& coefficients) {
  return ForEach(stream, count, AdamWUpdate{weights, exp_avg, exp_avg_sq, gradients, coefficients});
}

}  // namespace paceline::kernels::cuda
