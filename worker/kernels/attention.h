// Causal attention with grouped queries, without storing the square of probabilities: forward
// keeps the logarithm of each row's softmax denominator, backward recomputes the probabilities
// from it, tile by tile, skipping the tiles above the diagonal.
// Source: Dao et al. 2022, arXiv:2205.14135 (recomputation from the log-sum-exp); Ainslie et al.
// 2023, arXiv:2305.13245 (grouped queries: query head h reads key/value head h / (heads/kv_heads)).
// Invariant: tiles and sums run in a fixed order: equal input gives equal bits.
// Threading: a call belongs to the stream's thread and uses its workspace alone.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

// q: (batch, sequence, heads, head_dim); k, v: (batch, sequence, kv_heads, head_dim). A position's
// heads lie dense; positions lie *_stride elements apart, so q, k and v may be columns of one
// matrix of projections. out: (batch, sequence, heads, head_dim), positions out_stride apart.
// Gradients have the strides of what they are the gradient of.
struct AttentionShape {
  std::int32_t batch = 0;
  std::int32_t sequence = 0;
  std::int32_t heads = 0;
  std::int32_t kv_heads = 0;  // divides heads
  std::int32_t head_dim = 0;
  std::int32_t q_stride = 0;
  std::int32_t k_stride = 0;
  std::int32_t v_stride = 0;
  std::int32_t out_stride = 0;
  float scale = 0;  // of the scores; 1 / sqrt(head_dim) for Llama
};

// float32 elements that `workspace` must hold for both passes of this shape (and any smaller
// batch or sequence).
std::int64_t AttentionWorkspace(const AttentionShape& shape);

// out[b,i,h] = sum_{j<=i} p[b,h,i,j] v[b,j,h'];  p = softmax_j(scale * q[b,i,h] . k[b,j,h']).
// logsumexp: (batch, heads, sequence), log sum_{j<=i} exp(scale * q . k). out overlaps nothing.
void AttentionForward(Stream& stream, float* out, float* logsumexp, const float* q, const float* k,
                      const float* v, float* workspace, const AttentionShape& shape);

// dq, dk, dv are overwritten. dout has out's layout. Only dq, dk, dv are written; they overlap
// none of the inputs.
void AttentionBackward(Stream& stream, float* dq, float* dk, float* dv, const float* dout,
                       const float* q, const float* k, const float* v, const float* out,
                       const float* logsumexp, float* workspace, const AttentionShape& shape);

}  // namespace paceline::kernels
