// The arithmetic of the element-wise and row-wise kernels, once for the CPU (cpu/*.cc, where the
// compiler vectorises the loops around it) and the GPU (cuda/*.cu): what is tested on a CPU is
// what a GPU runs.
// Invariant: branch-free straight-line float32 with no contraction left to the compiler: a fused
// multiply-add stands where Fma is written, and only there (-ffp-contract=off, -fmad=false). So
// an element's bits do not depend on the vector width or on where in a loop it lies. NaN and
// infinity propagate.
// Threading: pure functions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "worker/kernels/adamw_coefficients.h"

#if defined(__CUDACC__)
#define PACELINE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PACELINE_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace paceline::kernels {

// a * b + c, rounded once.
PACELINE_HOST_DEVICE float Fma(float a, float b, float c) { return ::fmaf(a, b, c); }

PACELINE_HOST_DEVICE std::uint32_t BitsOf(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

PACELINE_HOST_DEVICE float FloatOf(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// e^x to 1.1 ulp; +inf above 88.7228, 0 below -87 (so that no loop meets denormal numbers), NaN
// for NaN.
// x = n ln 2 + r with |r| <= ln(2)/2, ln 2 in two parts (Cody & Waite 1980); e^r by its minimax
// polynomial of degree 6 (coefficients: the Cephes library's expf, Moshier 1992); 2^n is built
// from its exponent bits in two factors, as 2^128 alone is not a float32.
PACELINE_HOST_DEVICE float Exp(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = Fma(x, 1.44269504088896341f, kRound);
  const float n = shifted - kRound;
  float r = Fma(n, -0.693359375f, x);
  r = Fma(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = Fma(p, r, 1.3981999507e-3f);
  p = Fma(p, r, 8.3334519073e-3f);
  p = Fma(p, r, 4.1665795894e-2f);
  p = Fma(p, r, 1.6666665459e-1f);
  p = Fma(p, r, 5.0000001201e-1f);
  p = Fma(p, r * r, r) + 1.0f;
  // The low bits of `shifted` hold n; 126 = bias - 1, so the factor is 2^(n-1).
  const float factor = FloatOf((BitsOf(shifted) + 126u) << 23);
  float y = p * factor * 2.0f;
  // Beyond these limits n leaves the range of an exponent and y means nothing.
  y = x > 88.72283f ? FloatOf(0x7f800000u) : y;
  return x < -87.0f ? 0.0f : y;
}

PACELINE_HOST_DEVICE float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

PACELINE_HOST_DEVICE float Swiglu(float gate, float up) { return gate * Sigmoid(gate) * up; }

struct SwigluGradient {
  float gate;
  float up;
};

PACELINE_HOST_DEVICE SwigluGradient SwigluBackwardBody(float dy, float gate, float up) {
  const float s = Sigmoid(gate);
  const float slope = s * Fma(gate, 1.0f - s, 1.0f);
  return {dy * up * slope, dy * gate * s};
}

PACELINE_HOST_DEVICE float RmsNormBody(float x, float rstd, float weight) {
  return x * rstd * weight;
}

// mean_g_xhat: mean over the row of dy * weight * x * rstd.
PACELINE_HOST_DEVICE float RmsNormBackwardBody(float dy, float weight, float x, float rstd,
                                               float mean_g_xhat) {
  return rstd * Fma(-(x * rstd), mean_g_xhat, dy * weight);
}

struct RopePair {
  float first;
  float second;
};

PACELINE_HOST_DEVICE RopePair RopeBody(float first, float second, float cosine, float sine) {
  return {Fma(first, cosine, -(second * sine)), Fma(second, cosine, first * sine)};
}

struct AdamWState {
  float weight;
  float exp_avg;
  float exp_avg_sq;
};

PACELINE_HOST_DEVICE AdamWState AdamWBody(AdamWState s, float gradient,
                                          const AdamWCoefficients& c) {
  const float g = c.gradient_scale * gradient;
  const float m = Fma(c.one_minus_beta1, g - s.exp_avg, s.exp_avg);
  const float v = Fma(c.one_minus_beta2 * g, g, c.beta2 * s.exp_avg_sq);
  const float denominator = Fma(::sqrtf(v), c.inverse_sqrt_correction, c.eps);
  const float w = Fma(-c.step_size, m / denominator, c.decay_factor * s.weight);
  return {w, m, v};
}

// Neither NaN nor infinite: the exponent is not all ones.
PACELINE_HOST_DEVICE bool IsFinite(float x) { return (BitsOf(x) & 0x7f800000u) != 0x7f800000u; }

}  // namespace paceline::kernels
