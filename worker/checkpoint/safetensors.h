// The safetensors format: u64 header length, JSON header {name: {dtype, shape, data_offsets}},
// then data. It holds no code, unlike pickle.
// Invariant: a header that parsed describes tensors that fill the file exactly, without holes,
// overlaps or anything beyond its end.
// Threading: pure functions and plain values.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/manifest.h"
#include "common/status.h"

namespace paceline {

inline constexpr std::int64_t kSafetensorsHeaderBytesMax = 100'000'000;  // the format's own bound

struct SafetensorsTensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // in the file
  std::int64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  std::int64_t bytes = 0;  // of length and header: where the data begins
};

// What a slice is called in its file: the tensor's name, and for less than all of it the ranges:
// "model.embed_tokens.weight[0:128,64:128]".
std::string SafetensorsName(const TensorSliceInfo& slice);

// Length and header of a file that holds the slices in this order, padded with spaces so that
// the data begins at a multiple of 64 bytes. A function of the slices alone: a reader that knows
// them can tell whether one bit of the header has changed. `format` is the metadata's, for readers
// that ask who wrote the file. kInvalidArgument: a slice is impossible, or two have one name.
absl::StatusOr<std::string> BuildSafetensorsHeader(std::span<const TensorSliceInfo> slices,
                                                   const std::string& format = "paceline");

// `start`: the file's first bytes, at least the whole header; `file_bytes`: the file's size.
// kDataLoss: says what is wrong.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view start,
                                                         std::int64_t file_bytes);

// How many bytes of the file ParseSafetensorsHeader needs, from the first 8. kDataLoss: the
// length cannot be.
absl::StatusOr<std::int64_t> SafetensorsHeaderBytes(std::string_view start,
                                                    std::int64_t file_bytes);

}  // namespace paceline
