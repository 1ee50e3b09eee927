#include "worker/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "worker/kernels/cpu/sgemm.h"
#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

constexpr std::int64_t RoundUp(std::int64_t value) {
  return (value + cpu::kLanes - 1) / cpu::kLanes * cpu::kLanes;
}

// A block is this many query positions with all the query heads that share a key head: their
// queries are packed under each other into one matrix, so one product serves the whole group.
// More rows multiply faster, up to about 128; blocks longer than an eighth of the sequence waste
// much of that above the diagonal.
std::int64_t BlockPositions(const AttentionShape& shape) {
  const std::int64_t group = shape.heads / shape.kv_heads;
  const std::int64_t positions = std::min<std::int64_t>(128 / group, shape.sequence / 8);
  return RoundUp(std::max<std::int64_t>(positions, 1));
}

// One block's share of the work: rows [0, group * positions) are (head of the group, position).
struct Block {
  std::int64_t batch = 0;
  std::int64_t kv_head = 0;
  std::int64_t first = 0;       // position of the block's first query
  std::int64_t positions = 0;   // queries of a head
  std::int64_t group = 0;       // heads that share the key head
  std::int64_t keys = 0;        // keys that any of the queries sees: first + positions
  std::int64_t row_stride = 0;  // of the score tiles: `keys` rounded up to whole vectors

  std::int64_t rows() const { return group * positions; }
};

Block MakeBlock(const AttentionShape& shape, std::int64_t batch, std::int64_t kv_head,
                std::int64_t first) {
  Block block;
  block.batch = batch;
  block.kv_head = kv_head;
  block.first = first;
  block.positions = std::min(BlockPositions(shape), shape.sequence - first);
  block.group = shape.heads / shape.kv_heads;
  block.keys = first + block.positions;
  block.row_stride = RoundUp(block.keys);
  return block;
}

// The workspace, cut into the tiles of one block.
struct Tiles {
  float* queries;     // (rows, head_dim), scaled
  float* outputs;     // (rows, head_dim): outputs; in backward the output's gradients
  float* gradients;   // (rows, head_dim): of the queries
  float* scores;      // (rows, row_stride)
  float* dscores;     // (rows, row_stride)
  float* row_values;  // (rows): 1 / sum of exponentials; in backward dout . out
};

std::int64_t RowsMax(const AttentionShape& shape) {
  return shape.heads / shape.kv_heads * BlockPositions(shape);
}

Tiles CutWorkspace(float* workspace, const AttentionShape& shape) {
  const std::int64_t head_tile = RoundUp(RowsMax(shape) * shape.head_dim);
  const std::int64_t score_tile = RowsMax(shape) * RoundUp(shape.sequence);
  Tiles tiles;
  tiles.queries = workspace;
  tiles.outputs = tiles.queries + head_tile;
  tiles.gradients = tiles.outputs + head_tile;
  tiles.scores = tiles.gradients + head_tile;
  tiles.dscores = tiles.scores + score_tile;
  tiles.row_values = tiles.dscores + score_tile;
  return tiles;
}

// Where head `g` of the block's group stands in its first row of a (batch, sequence, heads,
// head_dim) array.
std::int64_t HeadOffset(const Block& block, const AttentionShape& shape, std::int64_t g,
                        std::int64_t stride) {
  return (block.batch * shape.sequence + block.first) * stride +
         (block.kv_head * block.group + g) * shape.head_dim;
}

std::int64_t KeyOffset(const Block& block, const AttentionShape& shape, std::int64_t stride) {
  return block.batch * shape.sequence * stride + block.kv_head * shape.head_dim;
}

PACELINE_VECTOR_CLONES
void Pack(float* packed, const float* x, const Block& block, const AttentionShape& shape,
          std::int64_t stride, float factor) {
  const std::int64_t head_dim = shape.head_dim;
  for (std::int64_t g = 0; g < block.group; ++g) {
    const float* in = x + HeadOffset(block, shape, g, stride);
    for (std::int64_t i = 0; i < block.positions; ++i, packed += head_dim, in += stride) {
#pragma GCC ivdep
      for (std::int64_t d = 0; d < head_dim; ++d) packed[d] = factor * in[d];
    }
  }
}

// The inverse of Pack; row_factors: one more factor for each row, or null.
PACELINE_VECTOR_CLONES
void Unpack(float* x, const float* packed, const Block& block, const AttentionShape& shape,
            std::int64_t stride, float factor, const float* row_factors) {
  const std::int64_t head_dim = shape.head_dim;
  for (std::int64_t g = 0; g < block.group; ++g) {
    float* out = x + HeadOffset(block, shape, g, stride);
    for (std::int64_t i = 0; i < block.positions; ++i, packed += head_dim, out += stride) {
      const float f =
          row_factors == nullptr ? factor : factor * row_factors[g * block.positions + i];
#pragma GCC ivdep
      for (std::int64_t d = 0; d < head_dim; ++d) out[d] = f * packed[d];
    }
  }
}

// scores -> exp(score - row maximum), 0 for keys after the query; row_values: 1 / row sum.
PACELINE_VECTOR_CLONES
void SoftmaxRows(const Tiles& tiles, float* logsumexp, const Block& block,
                 const AttentionShape& shape) {
  for (std::int64_t g = 0; g < block.group; ++g) {
    float* row_lse =
        logsumexp + (block.batch * shape.heads + block.kv_head * block.group + g) * shape.sequence +
        block.first;
    for (std::int64_t i = 0; i < block.positions; ++i) {
      const std::int64_t row = g * block.positions + i;
      const std::int64_t visible = block.first + i + 1;
      float* s = tiles.scores + row * block.row_stride;
      // Whole vectors from here on: exp(-inf) is 0, in the sum and in the product to come.
      const std::int64_t padded = RoundUp(visible);
      for (std::int64_t j = visible; j < padded; ++j) s[j] = -__builtin_inff();
      const float maximum = cpu::Maximum(s, padded);
      const float sum = cpu::StoreExp(s, s, padded, maximum);
      for (std::int64_t j = padded; j < block.row_stride; ++j) s[j] = 0.0f;
      row_lse[i] = maximum + std::log(sum);
      tiles.row_values[row] = 1.0f / sum;
    }
  }
}

// scores -> p = exp(score - logsumexp) and dscores: dp -> p * (dp - dout . out), 0 after the query.
PACELINE_VECTOR_CLONES
void SoftmaxBackwardRows(const Tiles& tiles, const float* logsumexp, const Block& block,
                         const AttentionShape& shape) {
  for (std::int64_t g = 0; g < block.group; ++g) {
    const float* row_lse =
        logsumexp + (block.batch * shape.heads + block.kv_head * block.group + g) * shape.sequence +
        block.first;
    for (std::int64_t i = 0; i < block.positions; ++i) {
      const std::int64_t row = g * block.positions + i;
      const std::int64_t visible = block.first + i + 1;
      float* p = tiles.scores + row * block.row_stride;
      float* dp = tiles.dscores + row * block.row_stride;
      const float lse = row_lse[i];
      const float dot = tiles.row_values[row];
      // Whole vectors; what they make of keys after the query is overwritten.
      const std::int64_t padded = RoundUp(visible);
#pragma GCC ivdep
      for (std::int64_t j = 0; j < padded; ++j) {
        p[j] = Exp(p[j] - lse);
        dp[j] = p[j] * (dp[j] - dot);
      }
      for (std::int64_t j = visible; j < block.row_stride; ++j) {
        p[j] = 0.0f;
        dp[j] = 0.0f;
      }
    }
  }
}

// row_values = dout . out, from the packed gradients and the strided outputs.
PACELINE_VECTOR_CLONES
void OutputDots(const Tiles& tiles, const float* out, const Block& block,
                const AttentionShape& shape) {
  const float* packed = tiles.outputs;
  float* value = tiles.row_values;
  for (std::int64_t g = 0; g < block.group; ++g) {
    const float* o = out + HeadOffset(block, shape, g, shape.out_stride);
    for (std::int64_t i = 0; i < block.positions; ++i) {
      *value++ = cpu::Dot(packed, o, shape.head_dim);
      packed += shape.head_dim;
      o += shape.out_stride;
    }
  }
}

struct ForwardArguments {
  float* out;
  float* logsumexp;
  const float* q;
  const float* k;
  const float* v;
  float* workspace;
};

void ForwardBlock(const ForwardArguments& args, const Tiles& tiles, const Block& block,
                  const AttentionShape& shape) {
  const std::int64_t head_dim = shape.head_dim;
  Pack(tiles.queries, args.q, block, shape, shape.q_stride, shape.scale);
  cpu::Sgemm(
      tiles.scores, tiles.queries, args.k + KeyOffset(block, shape, shape.k_stride), block.rows(),
      block.keys, head_dim,
      {.transpose_b = true, .lda = head_dim, .ldb = shape.k_stride, .ldc = block.row_stride});
  SoftmaxRows(tiles, args.logsumexp, block, shape);
  cpu::Sgemm(tiles.outputs, tiles.scores, args.v + KeyOffset(block, shape, shape.v_stride),
             block.rows(), head_dim, block.keys,
             {.lda = block.row_stride, .ldb = shape.v_stride, .ldc = head_dim});
  Unpack(args.out, tiles.outputs, block, shape, shape.out_stride, 1.0f, tiles.row_values);
}

struct BackwardArguments {
  float* dq;
  float* dk;
  float* dv;
  const float* dout;
  const float* q;
  const float* k;
  const float* v;
  const float* out;
  const float* logsumexp;
  float* workspace;
};

void BackwardBlock(const BackwardArguments& args, const Tiles& tiles, const Block& block,
                   const AttentionShape& shape) {
  const std::int64_t rows = block.rows();
  const std::int64_t head_dim = shape.head_dim;
  const std::int64_t k_offset = KeyOffset(block, shape, shape.k_stride);
  const std::int64_t v_offset = KeyOffset(block, shape, shape.v_stride);
  // Blocks come from the last to the first: the last one sees every key, so it writes the keys'
  // gradients and the others add to them.
  const float beta = block.keys == shape.sequence ? 0.0f : 1.0f;

  Pack(tiles.queries, args.q, block, shape, shape.q_stride, shape.scale);
  Pack(tiles.outputs, args.dout, block, shape, shape.out_stride, 1.0f);
  OutputDots(tiles, args.out, block, shape);
  const GemmOptions to_scores = {.transpose_b = true, .lda = head_dim, .ldc = block.row_stride};
  GemmOptions options = to_scores;
  options.ldb = shape.k_stride;
  cpu::Sgemm(tiles.scores, tiles.queries, args.k + k_offset, rows, block.keys, head_dim, options);
  options.ldb = shape.v_stride;
  cpu::Sgemm(tiles.dscores, tiles.outputs, args.v + v_offset, rows, block.keys, head_dim, options);
  SoftmaxBackwardRows(tiles, args.logsumexp, block, shape);

  options = {.transpose_a = true, .beta = beta, .lda = block.row_stride, .ldb = head_dim};
  options.ldc = shape.v_stride;
  cpu::Sgemm(args.dv + v_offset, tiles.scores, tiles.outputs, block.keys, head_dim, rows, options);
  options.ldc = shape.k_stride;
  cpu::Sgemm(args.dk + k_offset, tiles.dscores, tiles.queries, block.keys, head_dim, rows, options);
  cpu::Sgemm(tiles.gradients, tiles.dscores, args.k + k_offset, rows, head_dim, block.keys,
             {.lda = block.row_stride, .ldb = shape.k_stride, .ldc = head_dim});
  Unpack(args.dq, tiles.gradients, block, shape, shape.q_stride, shape.scale, nullptr);
}

void CheckShape(const AttentionShape& shape) {
  PACELINE_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0);
}

}  // namespace

std::int64_t AttentionWorkspace(const AttentionShape& shape) {
  CheckShape(shape);
  const std::int64_t rows = RowsMax(shape);
  return 3 * RoundUp(rows * shape.head_dim) + 2 * rows * RoundUp(shape.sequence) + rows;
}

void AttentionForward(Stream& stream, float* out, float* logsumexp, const float* q, const float* k,
                      const float* v, float* workspace, const AttentionShape& shape) {
  CheckShape(shape);
  const ForwardArguments args{out, logsumexp, q, k, v, workspace};
  stream.Enqueue([=] {
    const Tiles tiles = CutWorkspace(args.workspace, shape);
    const std::int64_t step = BlockPositions(shape);
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        for (std::int64_t first = 0; first < shape.sequence; first += step) {
          ForwardBlock(args, tiles, MakeBlock(shape, b, h, first), shape);
        }
      }
    }
  });
}

void AttentionBackward(Stream& stream, float* dq, float* dk, float* dv, const float* dout,
                       const float* q, const float* k, const float* v, const float* out,
                       const float* logsumexp, float* workspace, const AttentionShape& shape) {
  CheckShape(shape);
  const BackwardArguments args{dq, dk, dv, dout, q, k, v, out, logsumexp, workspace};
  stream.Enqueue([=] {
    const Tiles tiles = CutWorkspace(args.workspace, shape);
    const std::int64_t step = BlockPositions(shape);
    const std::int64_t last = (shape.sequence - 1) / step * step;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        for (std::int64_t first = last; first >= 0; first -= step) {
          BackwardBlock(args, tiles, MakeBlock(shape, b, h, first), shape);
        }
      }
    }
  });
}

}  // namespace paceline::kernels
