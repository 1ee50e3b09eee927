// A checkpoint's manifest: what global state it holds, and in which file each slice lies.
// Invariant: the JSON ends with a digest of everything before it; a manifest that parses is
// whole.
// Threading: plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace paceline {

inline constexpr int kManifestVersion = 1;

struct TensorSliceInfo {
  std::string name;   // global: "model.norm.weight", "optimizer.exp_avg/model.norm.weight"
  std::string dtype;  // safetensors' names: "F32", "F64", "I64"
  std::vector<std::int64_t> global_shape;
  std::vector<std::int64_t> start;
  std::vector<std::int64_t> shape;
  std::string digest;  // xxh3-128 of the bytes, 32 hex digits
};

struct ManifestPart {
  std::string file;
  std::int64_t bytes = 0;
  std::vector<TensorSliceInfo> slices;
};

struct Manifest {
  int version = kManifestVersion;
  std::string run_id;
  std::uint64_t generation = 0;
  std::int64_t step = 0;
  std::int64_t sample = 0;  // samples consumed since the run's start
  std::int64_t tokens = 0;  // of the lineage
  std::uint64_t seed = 0;   // every random stream is a function of (seed, position)
  std::string corpus_digest;
  std::string ledger_digest;
  std::string run_file;  // effective TOML: the folder alone suffices to resume
  std::vector<ManifestPart> parts;
};

// Bytes of one element of a safetensors dtype; 0: not a dtype that Paceline knows.
std::int64_t DtypeBytes(const std::string& dtype);

// Bytes of a slice. kInvalidArgument: the slice cannot be (dtype, ranks, extents, or it lies
// outside of its tensor); the text names the tensor and what is wrong.
absl::StatusOr<std::int64_t> BytesOf(const TensorSliceInfo& slice);

// Whether `file` can name a part: a plain name, no path.
bool IsPartFileName(const std::string& file);

std::string ToJson(const Manifest& manifest);
// kDataLoss: torn or altered (says which). kFailedPrecondition: a newer version.
absl::StatusOr<Manifest> ParseManifest(const std::string& json);
// Digest of the manifest: 32 hex digits, as at the JSON's end.
std::string DigestOf(const Manifest& manifest);

}  // namespace paceline
