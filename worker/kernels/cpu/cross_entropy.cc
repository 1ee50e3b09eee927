#include "worker/kernels/cross_entropy.h"

#include <cmath>

#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

// The cross-entropy of a row, from its maximum and sum of exponentials.
PACELINE_INLINE double RowLoss(float maximum, float sum, float target_logit) {
  return static_cast<double>(maximum) - static_cast<double>(target_logit) +
         std::log(static_cast<double>(sum));
}

PACELINE_VECTOR_CLONES
double Forward(const float* logits, const std::int32_t* targets, std::int64_t rows,
               std::int64_t vocab) {
  double loss_sum = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* x = logits + r * vocab;
    const float maximum = cpu::Maximum(x, vocab);
    loss_sum += RowLoss(maximum, cpu::SumOfExp(x, vocab, maximum), x[targets[r]]);
  }
  return loss_sum;
}

PACELINE_VECTOR_CLONES
double ForwardBackward(float* logits, const std::int32_t* targets, std::int64_t rows,
                       std::int64_t vocab, float scale) {
  double loss_sum = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    float* x = logits + r * vocab;
    const float target_logit = x[targets[r]];
    const float maximum = cpu::Maximum(x, vocab);
    const float sum = cpu::StoreExp(x, x, vocab, maximum);
    const float factor = scale / sum;
    for (std::int64_t c = 0; c < vocab; ++c) x[c] *= factor;
    x[targets[r]] -= scale;
    loss_sum += RowLoss(maximum, sum, target_logit);
  }
  return loss_sum;
}

}  // namespace

void CrossEntropyForward(Stream& stream, double* loss_sum, const float* logits,
                         const std::int32_t* targets, std::int64_t rows, std::int64_t vocab) {
  stream.Enqueue([=] { *loss_sum += Forward(logits, targets, rows, vocab); });
}

void CrossEntropyForwardBackward(Stream& stream, double* loss_sum, float* logits,
                                 const std::int32_t* targets, std::int64_t rows, std::int64_t vocab,
                                 float scale) {
  stream.Enqueue([=] { *loss_sum += ForwardBackward(logits, targets, rows, vocab, scale); });
}

}  // namespace paceline::kernels
