// The trainable state of one rank as flat arrays: every parameter has one offset, and the
// weights, gradients and optimizer moments are arrays with the same offsets. Whatever does
// not care for names (AdamW, clipping, reduction, ZeRO-1) works on ranges of them.
// The arrays have two regions: first what every data-parallel rank holds alike, then the routed
// experts' parameters, which expert parallelism spreads over ranks and reduces over another group.
// Invariant: within a region parameters are laid out in the order in which backward finishes
// them, so that a prefix of it is ready to reduce while the rest is computed; offsets are
// multiples of kAlignElements and the padding between parameters is zero in every array.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/model_shape.h"
#include "common/status.h"
#include "worker/kernels/stream.h"

namespace paceline {

inline constexpr std::int64_t kAlignElements = 16;  // 64 bytes of float32

struct Parameter {
  std::string name;  // Hugging Face's, global
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // into the flat arrays, elements
  std::int64_t elements = 0;
  bool weight_decay = false;  // matrices and embeddings: true; norms: false
};

// A range of the flat arrays, all of it in one region, that is reduced in one piece.
struct GradientBucket {
  std::int64_t offset = 0;
  std::int64_t elements = 0;
  bool expert = false;  // which region: routed experts' parameters, or what all ranks hold
};

// Buffers that are state but not trained by gradients: balancing biases, float32.
struct StateBuffer {
  std::string name;  // "model.layers.1.mlp.gate.e_score_correction_bias"
  std::vector<std::int64_t> shape;
  float* data = nullptr;
};

// Initial value of element `index` of parameter `name`: normal(0, stddev), a function of
// (seed, name, index) alone (Philox4x32-10 and Box-Muller), so it does not depend on the layout.
float InitialNormal(std::uint64_t seed, const std::string& name, std::int64_t index, double stddev);

// values[i] = InitialNormal(seed, name, i, stddev).
void FillInitialNormal(std::uint64_t seed, const std::string& name, double stddev,
                       std::span<float> values);

// Name of the first parameter that holds a non-finite value in elements [begin, begin + count) of
// `flat`, a flat array; empty when all are finite, or where `stream` has failed. Waits for it.
std::string FirstNonFinite(Stream& stream, const std::vector<Parameter>& parameters,
                           std::span<const float> flat, std::int64_t begin, std::int64_t count);

}  // namespace paceline
