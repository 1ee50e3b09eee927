// The matrix product around the tiles (sgemm_kernel.h): which blocks are copied, and the order in
// which tiles are computed. Included where the tiles are.
// Invariant: k is cut into blocks as a function of k alone, and blocks are added to C in ascending
// order; copies move values and compute nothing. So an element's bits depend on its row of A, its
// column of B, alpha, beta and what C held.
// Threading: pure functions of their arguments; scratch belongs to the caller.
#pragma once

#include <cstdint>
#include <utility>

#include "worker/kernels/cpu/sgemm.h"
#include "worker/kernels/cpu/sgemm_kernel.h"

namespace paceline::kernels::cpu {
namespace {

// A panel of B (kBlockDepth x kTileColumns) is meant to stay in the first-level cache while all
// tiles of its columns use it; a block of A (kBlockRows x kBlockDepth), in the second while all
// panels do.
constexpr std::int64_t kBlockDepth = 256;
constexpr std::int64_t kBlockRows = 588;
static_assert(kBlockRows % kTileRows == 0);
// What is read where it stands and what is copied first, as measured (gemm_bench). Rows further
// apart than this collide in the caches' sets.
constexpr std::int64_t kDirectStride = 256;
// For fewer columns of C a copy of A is not used often enough.
constexpr std::int64_t kCopyColumns = 256;
// A copied A keeps its order: rows with this stride, which spreads them over the sets, or for a
// transposed A panels of kTileRows columns.
constexpr std::int64_t kRowStride = kBlockDepth + kLineFloats;
constexpr std::int64_t kPanelStride = (kTileRows + kLaneCount - 1) / kLaneCount * kLaneCount;
constexpr std::int64_t kPanelFloats = kBlockDepth * kPanelStride;
constexpr std::int64_t kBPanelFloats = kBlockDepth * kTileColumns;
static_assert(kBPanelFloats + kBlockRows * kRowStride <= kSgemmScratchFloats);
static_assert(kBPanelFloats + kBlockRows / kTileRows * kPanelFloats <= kSgemmScratchFloats);

PACELINE_TILE_INLINE std::int64_t Lesser(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Rows of B^T become columns of the panel. A column that does not exist is a copy of the last one
// that does: what a tile makes of it is thrown away.
void PackTransposedB(float* panel, const float* b, std::int64_t ldb, std::int64_t columns,
                     std::int64_t k) {
  for (std::int64_t first = 0; first < kTileColumns; first += kLaneCount) {
    const float* rows[kLaneCount];
    for (int j = 0; j < kLaneCount; ++j) rows[j] = b + Lesser(first + j, columns - 1) * ldb;
    float* out = panel + first;
    std::int64_t l = 0;
    for (; l + kLaneCount <= k; l += kLaneCount) {
      Vector x[kLaneCount];
#pragma GCC unroll 16
      for (int j = 0; j < kLaneCount; ++j) x[j] = LoadVector(rows[j] + l);
      Transpose(x);
#pragma GCC unroll 16
      for (int j = 0; j < kLaneCount; ++j, out += kTileColumns) StoreVector(out, x[j]);
    }
    for (; l < k; ++l, out += kTileColumns) {
      for (int j = 0; j < kLaneCount; ++j) out[j] = rows[j][l];
    }
  }
}

void PackB(float* panel, const float* b, std::int64_t ldb, std::int64_t columns, std::int64_t k) {
  for (std::int64_t l = 0; l < k; ++l, panel += kTileColumns, b += ldb) {
    if (columns == kTileColumns) {
      for (std::int64_t j = 0; j < kTileColumns; j += kLaneCount) {
        StoreVector(panel + j, LoadVector(b + j));
      }
    } else {
      for (std::int64_t j = 0; j < kTileColumns; ++j) panel[j] = j < columns ? b[j] : 0.0f;
    }
  }
}

void CopyRows(float* block, const float* a, std::int64_t lda, std::int64_t m, std::int64_t k) {
  for (std::int64_t i = 0; i < m; ++i, block += kRowStride, a += lda) {
    std::int64_t l = 0;
    for (; l + kLaneCount <= k; l += kLaneCount) StoreVector(block + l, LoadVector(a + l));
    for (; l < k; ++l) block[l] = a[l];
  }
}

// m rows in as few tiles as they need, of heights that differ by at most one: a low tile has too
// few sums to hide the fma's latency.
class TileHeights {
 public:
  explicit TileHeights(std::int64_t m)
      : tiles_((m + kTileRows - 1) / kTileRows), height_(m / tiles_), higher_(m % tiles_) {}
  std::int64_t tiles() const { return tiles_; }
  std::int64_t Rows(std::int64_t tile) const { return height_ + (tile < higher_ ? 1 : 0); }

 private:
  std::int64_t tiles_;
  std::int64_t height_;
  std::int64_t higher_;  // the first so many tiles have one row more
};

void CopyPanels(float* block, const float* a, std::int64_t lda, std::int64_t m, std::int64_t k) {
  const TileHeights heights(m);
  std::int64_t first = 0;
  for (std::int64_t tile = 0; tile < heights.tiles(); ++tile, block += kPanelFloats) {
    const std::int64_t rows = heights.Rows(tile);
    const bool whole = first + kPanelStride <= m;  // vectors read no further than A goes
    const float* in = a + first;
    float* out = block;
    for (std::int64_t l = 0; l < k; ++l, in += lda, out += kPanelStride) {
      if (whole) {
        for (std::int64_t i = 0; i < kPanelStride; i += kLaneCount) {
          StoreVector(out + i, LoadVector(in + i));
        }
      } else {
        for (std::int64_t i = 0; i < rows; ++i) out[i] = in[i];
      }
    }
    first += rows;
  }
}

using TileFunction = void (*)(const TileOperands&);
template <bool kTransposedA, int... kRowsLessOne>
TileFunction TileOfRows(std::int64_t rows, std::integer_sequence<int, kRowsLessOne...>) {
  static constexpr TileFunction kTiles[] = {Tile<kRowsLessOne + 1, kTransposedA>...};
  return kTiles[rows - 1];
}

// A tile over the right edge of C goes through a whole tile beside it.
void EdgeTile(TileFunction tile, TileOperands o, std::int64_t rows, std::int64_t columns) {
  alignas(kVectorBytes) float whole[kTileRows * kTileColumns] = {};
  float* c = o.c;
  const std::int64_t ldc = o.ldc;
  if (o.beta != 0.0f) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) whole[i * kTileColumns + j] = c[i * ldc + j];
    }
  }
  o.c = whole;
  o.ldc = kTileColumns;
  tile(o);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) c[i * ldc + j] = whole[i * kTileColumns + j];
  }
}

// All tiles of one panel of B: o.a is the block of A, o.c the panel's columns of C. panel_step:
// between the panels of a copied block; 0: the rows of A follow each other.
template <bool kTransposedA>
void Panel(TileOperands o, std::int64_t m, std::int64_t columns, std::int64_t panel_step) {
  const TileHeights heights(m);
  const float* const first = o.a;
  for (std::int64_t tile = 0; tile < heights.tiles(); ++tile) {
    const std::int64_t rows = heights.Rows(tile);
    const std::int64_t step =
        panel_step != 0 ? panel_step : rows * (kTransposedA ? std::int64_t{1} : o.lda);
    o.next_a = tile + 1 < heights.tiles() ? o.a + step : first;
    const TileFunction function =
        TileOfRows<kTransposedA>(rows, std::make_integer_sequence<int, kTileRows>());
    if (columns == kTileColumns) {
      function(o);
    } else {
      EdgeTile(function, o, rows, columns);
    }
    o.a += step;
    o.c += rows * o.ldc;
  }
}

// One block of A: C's m rows = alpha * a b + beta * C.
template <bool kTransposedA, bool kTransposedB>
void Block(const SgemmOperands& p, std::int64_t m, std::int64_t k, const float* a, const float* b,
           float* c, float beta, float* scratch) {
  float* const panel = scratch;
  float* const copy = scratch + kBPanelFloats;
  TileOperands o = {k, a, p.lda, nullptr, 0, c, p.ldc, p.alpha, beta, nullptr};
  std::int64_t panel_step = 0;
  if (p.n > kCopyColumns && kTransposedA) {
    CopyPanels(copy, a, p.lda, m, k);
    o.a = copy;
    o.lda = kPanelStride;
    panel_step = kPanelFloats;
  } else if (p.n > kCopyColumns && p.lda > kDirectStride) {
    CopyRows(copy, a, p.lda, m, k);
    o.a = copy;
    o.lda = kRowStride;
  }
  for (std::int64_t j = 0; j < p.n; j += kTileColumns) {
    const std::int64_t columns = Lesser(p.n - j, kTileColumns);
    o.b = panel;
    o.ldb = kTileColumns;
    if (kTransposedB) {
      PackTransposedB(panel, b + j * p.ldb, p.ldb, columns, k);
    } else if (columns < kTileColumns || p.ldb > kDirectStride) {
      PackB(panel, b + j, p.ldb, columns, k);
    } else {
      o.b = b + j;
      o.ldb = p.ldb;
    }
    o.c = c + j;
    Panel<kTransposedA>(o, m, columns, panel_step);
  }
}

template <bool kTransposedA, bool kTransposedB>
void Product(const SgemmOperands& p, float* scratch) {
  const std::int64_t blocks = (p.k + kBlockDepth - 1) / kBlockDepth;
  const std::int64_t depth = (p.k + blocks - 1) / blocks;
  for (std::int64_t i = 0; i < p.m; i += kBlockRows) {
    const std::int64_t m = Lesser(p.m - i, kBlockRows);
    float beta = p.beta;
    for (std::int64_t l = 0; l < p.k; l += depth) {
      const float* a = p.a + (kTransposedA ? l * p.lda + i : i * p.lda + l);
      const float* b = p.b + (kTransposedB ? l : l * p.ldb);
      Block<kTransposedA, kTransposedB>(p, m, Lesser(p.k - l, depth), a, b, p.c + i * p.ldc, beta,
                                        scratch);
      beta = 1.0f;
    }
  }
}

void MultiplyByBlocks(const SgemmOperands& p, float* scratch) {
  if (p.transpose_a) {
    p.transpose_b ? Product<true, true>(p, scratch) : Product<true, false>(p, scratch);
  } else {
    p.transpose_b ? Product<false, true>(p, scratch) : Product<false, false>(p, scratch);
  }
}

}  // namespace
}  // namespace paceline::kernels::cpu
