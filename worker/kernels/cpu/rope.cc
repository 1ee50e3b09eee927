#include "worker/kernels/rope.h"

#include <cmath>

#include "worker/kernels/cpu/vector.h"
#include "worker/kernels/rowwise_body.h"
#include "worker/kernels/stream.h"

namespace paceline::kernels {
namespace {

struct Arguments {
  float* x;
  const float* cosines;
  const float* sines;
  std::int64_t rows;
  std::int64_t sequence;
  std::int64_t heads;
  std::int64_t half;  // head_dim / 2
  std::int64_t row_stride;
};

// sign: 1 rotates forward, -1 back.
PACELINE_VECTOR_CLONES
void Rotate(const Arguments& args, float sign) {
  const std::int64_t half = args.half;
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const float* cosines = args.cosines + r % args.sequence * half;
    const float* sines = args.sines + r % args.sequence * half;
    for (std::int64_t h = 0; h < args.heads; ++h) {
      float* first = args.x + r * args.row_stride + h * 2 * half;
      float* second = first + half;
#pragma GCC ivdep
      for (std::int64_t i = 0; i < half; ++i) {
        const RopePair pair = RopeBody(first[i], second[i], cosines[i], sign * sines[i]);
        first[i] = pair.first;
        second[i] = pair.second;
      }
    }
  }
}

}  // namespace

void RopeTables(float* cosines, float* sines, std::int64_t positions, std::int64_t head_dim,
                double theta) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    for (std::int64_t p = 0; p < positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      cosines[p * half + i] = static_cast<float>(std::cos(angle));
      sines[p * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void RopeForward(Stream& stream, float* x, const float* cosines, const float* sines,
                 std::int64_t rows, std::int64_t sequence, std::int64_t heads,
                 std::int64_t head_dim, std::int64_t row_stride) {
  const Arguments args{x, cosines, sines, rows, sequence, heads, head_dim / 2, row_stride};
  stream.Enqueue([=] { Rotate(args, 1.0f); });
}

void RopeBackward(Stream& stream, float* dx, const float* cosines, const float* sines,
                  std::int64_t rows, std::int64_t sequence, std::int64_t heads,
                  std::int64_t head_dim, std::int64_t row_stride) {
  const Arguments args{dx, cosines, sines, rows, sequence, heads, head_dim / 2, row_stride};
  stream.Enqueue([=] { Rotate(args, -1.0f); });
}

}  // namespace paceline::kernels
