// Softmax cross-entropy over rows of logits, in nats.
// Invariant: a row's result depends on that row alone; rows are added up in order, in float64.
// Equal input gives equal bits. A non-finite logit makes the loss non-finite.
// Threading: a call belongs to the stream's thread.
#pragma once

#include <cstdint>

#include "worker/kernels/stream.h"

namespace paceline::kernels {

// *loss_sum += sum_r (log sum_c exp(logits[r,c]) - logits[r,targets[r]]).
// logits: (rows, vocab), dense; targets: (rows), each in [0, vocab).
void CrossEntropyForward(Stream& stream, double* loss_sum, const float* logits,
                         const std::int32_t* targets, std::int64_t rows, std::int64_t vocab);

// The same sum, and logits[r,c] = scale * (softmax(logits[r,:])[c] - (c == targets[r])) in place:
// the gradient of scale * loss_sum.
void CrossEntropyForwardBackward(Stream& stream, double* loss_sum, float* logits,
                                 const std::int32_t* targets, std::int64_t rows, std::int64_t vocab,
                                 float scale);

}  // namespace paceline::kernels
