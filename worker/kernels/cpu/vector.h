// What the CPU kernels share: sixteen-lane vectors for sums and maxima over rows, and the macro
// that compiles a loop twice. Everything here is inlined into such loops.
// Invariant: a reduction always has 16 lanes (element i goes to lane i % 16) and one tree at the
// end, on every CPU, so its bits do not depend on the vector width of the machine.
// Threading: pure functions.
#pragma once

#include <cstdint>

#include "worker/kernels/rowwise_body.h"

// The kernels are compiled for x86-64-v3 (AVX2, FMA); a function marked with this also for
// x86-64-v4 (AVX-512), and the loader picks. Everything it calls must be inlined into it.
// Resolvers run before a sanitizer's runtime is ready, so sanitized builds get one version.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__x86_64__)
#define PACELINE_VECTOR_CLONES
#else
#define PACELINE_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "default")))
#endif
#define PACELINE_INLINE inline __attribute__((always_inline))

namespace paceline::kernels::cpu {

inline constexpr std::int64_t kLanes = 16;

// Sixteen float32 as the compiler's vector: one AVX-512 register or two of AVX2.
typedef float Floats __attribute__((vector_size(64)));

PACELINE_INLINE Floats Load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

PACELINE_INLINE void Store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The first `count` < 16 elements, `fill` in the other lanes.
PACELINE_INLINE Floats LoadPart(const float* p, std::int64_t count, float fill) {
  Floats v;
  for (std::int64_t lane = 0; lane < kLanes; ++lane) v[lane] = lane < count ? p[lane] : fill;
  return v;
}

// Lanes i and i + 8, then i and i + 4, i + 2, i + 1. Combining the vector with itself, turned, does
// each step in one operation; lane 0 has the tree's result.
PACELINE_INLINE float AddLanes(Floats v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return v[0];
}

PACELINE_INLINE Floats Larger(Floats a, Floats b) { return a > b ? a : b; }

// The largest x[i], -inf for none. A NaN may be passed over: what is computed from the row is
// NaN anyway.
PACELINE_INLINE float Maximum(const float* x, std::int64_t count) {
  Floats most = Floats{} - __builtin_inff();
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) most = Larger(Load(x + i), most);
  if (i < count) most = Larger(LoadPart(x + i, count - i, -__builtin_inff()), most);
  const Floats v8 = Larger(most, __builtin_shufflevector(most, most, 8, 9, 10, 11, 12, 13, 14, 15,
                                                         0, 1, 2, 3, 4, 5, 6, 7));
  const Floats v4 = Larger(
      v8, __builtin_shufflevector(v8, v8, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  const Floats v2 = Larger(
      v4, __builtin_shufflevector(v4, v4, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return v2[0] > v2[1] ? v2[0] : v2[1];
}

// sum_i a[i] * b[i].
PACELINE_INLINE float Dot(const float* a, const float* b, std::int64_t count) {
  Floats sum = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += Load(a + i) * Load(b + i);
  if (i < count) sum += LoadPart(a + i, count - i, 0.0f) * LoadPart(b + i, count - i, 0.0f);
  return AddLanes(sum);
}

// sum_i exp(x[i] - maximum).
PACELINE_INLINE float SumOfExp(const float* x, std::int64_t count, float maximum) {
  Floats sum = {};
  float e[kLanes];
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) e[lane] = Exp(x[i + lane] - maximum);
    sum += Load(e);
  }
  if (i < count) {
    const Floats last = LoadPart(x + i, count - i, -__builtin_inff());
    for (std::int64_t lane = 0; lane < kLanes; ++lane) e[lane] = Exp(last[lane] - maximum);
    sum += Load(e);
  }
  return AddLanes(sum);
}

// y[i] = exp(x[i] - maximum); their sum, in the same order as SumOfExp's. y may be x.
PACELINE_INLINE float StoreExp(float* y, const float* x, std::int64_t count, float maximum) {
  Floats sum = {};
  float e[kLanes];
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) e[lane] = Exp(x[i + lane] - maximum);
    Store(y + i, Load(e));
    sum += Load(e);
  }
  if (i < count) {
    const Floats last = LoadPart(x + i, count - i, -__builtin_inff());
    for (std::int64_t lane = 0; lane < kLanes; ++lane) e[lane] = Exp(last[lane] - maximum);
    for (std::int64_t lane = 0; i + lane < count; ++lane) y[i + lane] = e[lane];
    sum += Load(e);
  }
  return AddLanes(sum);
}

}  // namespace paceline::kernels::cpu
