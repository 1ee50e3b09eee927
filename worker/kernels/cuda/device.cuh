// What the CUDA kernels share: grid sizes and reductions in a fixed order.
// Invariant: a reduction's order is set by the block size alone.
// Threading: device code; every thread of a warp (or block) must take part.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace paceline::kernels::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256;  // of a block
inline constexpr int kWarpsPerBlock = kThreads / kWarp;
inline constexpr std::int64_t kBlocksMax = 1 << 20;

// Blocks for `items` at `per_block` each; beyond the maximum the kernels' loops stride on.
inline unsigned Blocks(std::int64_t items, std::int64_t per_block) {
  const std::int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kBlocksMax ? blocks : kBlocksMax);
}

struct Plus {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Larger {
  __device__ float operator()(float a, float b) const { return a > b ? a : b; }
};

// The reduction over a warp, in every lane: lanes i and i ^ 16, then ^ 8, ^ 4, ^ 2, ^ 1.
template <typename T, typename Combine>
__device__ T WarpReduce(T value, Combine combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// The reduction over a block of kThreads, in every thread: each warp, then its results in the
// order of the warps.
template <typename T, typename Combine>
__device__ T BlockReduce(T value, Combine combine) {
  __shared__ T warps[kWarpsPerBlock];
  value = WarpReduce(value, combine);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  T result = warps[0];
  for (int w = 1; w < kWarpsPerBlock; ++w) result = combine(result, warps[w]);
  __syncthreads();  // `warps` may be written again by the caller's next reduction
  return result;
}

}  // namespace paceline::kernels::cuda
