// The innermost part of the matrix product: a tile of C in registers, and the transposition that
// copying needs. Included by sgemm_base.cc and sgemm_avx512.cc, each compiled for one instruction
// set; everything is local to the including file, so that the linker mixes nothing up.
// Invariant: element (i, j) of a tile is fma(a(i, l), b(l, j), sum) over ascending l from zero,
// for every height of tile and width of vector.
// Threading: pure functions.
#pragma once

#if defined(__FMA__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <utility>

namespace paceline::kernels::cpu {
namespace {

// A tile is kTileRows x kTileColumns: as many sums as fill the registers but for a row of B and
// an element of A. So many independent ones hide the fma's latency.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;  // 32 registers: 28 sums, 2 of B
constexpr int kTileRows = 14;
constexpr int kTileVectors = 2;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;  // 16 registers: 12 sums, 2 of B
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
#else
constexpr int kVectorBytes = 16;  // 32 registers (NEON): 24 sums, 4 of B
constexpr int kTileRows = 6;
constexpr int kTileVectors = 4;
#endif
constexpr int kLaneCount = kVectorBytes / 4;
constexpr int kTileColumns = kTileVectors * kLaneCount;
constexpr int kLineFloats = 16;  // of a cache line

typedef float Vector __attribute__((vector_size(kVectorBytes)));

#define PACELINE_TILE_INLINE inline __attribute__((always_inline))

PACELINE_TILE_INLINE Vector LoadVector(const float* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

PACELINE_TILE_INLINE void StoreVector(float* p, Vector v) { __builtin_memcpy(p, &v, sizeof(v)); }

// x in every lane. Subtracting +0 keeps every x as it is, which adding it would not (-0).
PACELINE_TILE_INLINE Vector Broadcast(float x) { return x - Vector{}; }

// x * y + sum, rounded once.
PACELINE_TILE_INLINE Vector MultiplyAdd(Vector x, Vector y, Vector sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(x, y, sum);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(x, y, sum);
#else
  for (int lane = 0; lane < kLaneCount; ++lane) {
    sum[lane] = __builtin_fmaf(x[lane], y[lane], sum[lane]);
  }
  return sum;
#endif
}

// One tile's operands.
struct TileOperands {
  std::int64_t k;
  const float* a;  // element (i, l) at a[i * lda + l], or at a[l * lda + i] for a transposed A
  std::int64_t lda;
  const float* b;  // k rows of kTileColumns
  std::int64_t ldb;
  float* c;
  std::int64_t ldc;
  float alpha;
  float beta;
  const float* next_a;  // `a` of the tile to come, which is brought into the cache meanwhile
};

// C = alpha * (A B) + beta * C over kRows x kTileColumns elements. Lines of C, and of the next A,
// are asked for during the first steps: both come from the second-level cache at best.
template <int kRows, bool kTransposedA>
void Tile(const TileOperands& o) {
  Vector sum[kRows][kTileVectors] = {};
  const float* a = o.a;
  const float* b = o.b;
  const float* next_a = o.next_a;
  const float* next_c = o.c;
  const auto step = [&]() __attribute__((always_inline)) {
    Vector row[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) row[v] = LoadVector(b + v * kLaneCount);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vector element = Broadcast(kTransposedA ? a[i] : a[i * o.lda]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sum[i][v] = MultiplyAdd(element, row[v], sum[i][v]);
    }
    a += kTransposedA ? o.lda : 1;
    b += o.ldb;
  };
  std::int64_t l = 0;
  for (; l + 4 <= o.k; l += 4) {
    if (l < 4 * kRows) {
      __builtin_prefetch(next_c);
      if (kTileColumns > kLineFloats) __builtin_prefetch(next_c + kLineFloats);
      next_c += o.ldc;
    }
    if constexpr (kTransposedA) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, next_a += o.lda) __builtin_prefetch(next_a);
    } else {
      // A line has four such groups of steps; each asks for the lines of a quarter of the rows.
      const float* line = next_a + l + l / 4 % 4 * o.lda;
#pragma GCC unroll 4
      for (int i = 0; i < kRows; i += 4) __builtin_prefetch(line + i * o.lda);
    }
    step();
    step();
    step();
    step();
  }
  for (; l < o.k; ++l) step();

  float* c = o.c;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i, c += o.ldc) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      Vector out = o.alpha * sum[i][v];
      if (o.beta != 0.0f) {
        out = MultiplyAdd(Broadcast(o.beta), LoadVector(c + v * kLaneCount), out);
      }
      StoreVector(c + v * kLaneCount, out);
    }
  }
}

// A square of vectors is transposed in two steps that each machine has instructions for: 4 x 4
// elements within quarters of 16 bytes, then whole quarters.
constexpr int kQuarters = kLaneCount / 4;
using Lanes = std::make_integer_sequence<int, kLaneCount>;

template <int... kLane>
PACELINE_TILE_INLINE void TransposeInQuarters(Vector* x, std::integer_sequence<int, kLane...>) {
  const Vector low01 = __builtin_shufflevector(
      x[0], x[1], (kLane / 4 * 4 + kLane % 4 / 2 + kLane % 2 * kLaneCount)...);
  const Vector high01 = __builtin_shufflevector(
      x[0], x[1], (kLane / 4 * 4 + 2 + kLane % 4 / 2 + kLane % 2 * kLaneCount)...);
  const Vector low23 = __builtin_shufflevector(
      x[2], x[3], (kLane / 4 * 4 + kLane % 4 / 2 + kLane % 2 * kLaneCount)...);
  const Vector high23 = __builtin_shufflevector(
      x[2], x[3], (kLane / 4 * 4 + 2 + kLane % 4 / 2 + kLane % 2 * kLaneCount)...);
  x[0] = __builtin_shufflevector(low01, low23,
                                 (kLane / 4 * 4 + kLane % 2 + kLane % 4 / 2 * kLaneCount)...);
  x[1] = __builtin_shufflevector(low01, low23,
                                 (kLane / 4 * 4 + 2 + kLane % 2 + kLane % 4 / 2 * kLaneCount)...);
  x[2] = __builtin_shufflevector(high01, high23,
                                 (kLane / 4 * 4 + kLane % 2 + kLane % 4 / 2 * kLaneCount)...);
  x[3] = __builtin_shufflevector(high01, high23,
                                 (kLane / 4 * 4 + 2 + kLane % 2 + kLane % 4 / 2 * kLaneCount)...);
}

// Of vectors j, j + 4, ...: the even quarters of each pair go to the first half, the odd ones to
// the second. Done log2(kQuarters) times this transposes the quarters.
template <int... kLane>
PACELINE_TILE_INLINE void SplitQuarters(Vector* x, std::integer_sequence<int, kLane...>) {
  Vector split[kQuarters];
#pragma GCC unroll 4
  for (int i = 0; i < kQuarters / 2; ++i) {
    const Vector a = x[8 * i];
    const Vector b = x[8 * i + 4];
    split[i] = __builtin_shufflevector(a, b, (kLane / 4 * 8 + kLane % 4)...);
    split[i + kQuarters / 2] = __builtin_shufflevector(a, b, (kLane / 4 * 8 + 4 + kLane % 4)...);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kQuarters; ++i) x[4 * i] = split[i];
}

// x[i][j] <-> x[j][i].
PACELINE_TILE_INLINE void Transpose(Vector (&x)[kLaneCount]) {
#pragma GCC unroll 4
  for (int i = 0; i < kLaneCount; i += 4) TransposeInQuarters(x + i, Lanes());
#pragma GCC unroll 4
  for (int quarters = kQuarters; quarters > 1; quarters /= 2) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) SplitQuarters(x + j, Lanes());
  }
}

}  // namespace
}  // namespace paceline::kernels::cpu
