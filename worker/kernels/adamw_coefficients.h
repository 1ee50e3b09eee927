// What one AdamW step needs beside the arrays; shared with CUDA files, so it includes nothing.
// Threading: a value.
#pragma once

namespace paceline::kernels {

// Derived by the caller (worker/model/optimizer.h) in float64; t is the step, 1 the first.
struct AdamWCoefficients {
  float gradient_scale = 1;  // multiplies the gradient first (clipping)
  float decay_factor = 1;    // 1 - learning_rate * weight_decay
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float one_minus_beta1 = 0.1f;
  float one_minus_beta2 = 0.05f;
  float step_size = 0;                // learning_rate / (1 - beta1^t)
  float inverse_sqrt_correction = 1;  // 1 / sqrt(1 - beta2^t)
  float eps = 1e-8f;
};

}  // namespace paceline::kernels
