#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <utility>

#include "common/files.h"
#include "common/xxh128.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/open_file.h"
#include "worker/checkpoint/safetensors.h"

namespace paceline {
namespace {

constexpr std::int64_t kManifestBytesMax = std::int64_t{1} << 30;
constexpr std::int64_t kChunkBytes = 4 << 20;
constexpr std::int64_t kElementBytes = sizeof(float);

using Extents = std::vector<std::int64_t>;

std::int64_t Product(std::span<const std::int64_t> extents) {
  return std::accumulate(extents.begin(), extents.end(), std::int64_t{1}, std::multiplies<>());
}

std::string TextOf(std::span<const std::int64_t> extents) {
  std::string text = "[";
  for (std::size_t i = 0; i < extents.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(extents[i]);
  }
  return text + "]";
}

// A box inside a tensor.
struct Box {
  Extents start;
  Extents shape;
  std::int64_t elements() const { return Product(shape); }
};

// What two boxes share; without elements where they share nothing.
Box Intersect(const Box& a, const Box& b) {
  Box common;
  for (std::size_t i = 0; i < a.start.size(); ++i) {
    const std::int64_t start = std::max(a.start[i], b.start[i]);
    const std::int64_t end = std::min(a.start[i] + a.shape[i], b.start[i] + b.shape[i]);
    common.start.push_back(start);
    common.shape.push_back(std::max<std::int64_t>(end - start, 0));
  }
  return common;
}

// Calls run(offset in `from`, offset in `to`, elements) for the pieces of `common` that lie in
// one piece in both, in elements, row-major.
template <typename Run>
absl::Status ForEachRun(const Box& common, const Box& from, const Box& to, Run run) {
  // Dimensions from `inner` on make up one run: all but the first of them whole in both.
  std::size_t inner = common.shape.size();
  std::int64_t length = 1;
  while (inner > 0) {
    --inner;
    length *= common.shape[inner];
    if (common.shape[inner] != from.shape[inner] || common.shape[inner] != to.shape[inner]) break;
  }
  const auto offset_in = [](const Box& box, const Extents& position) {
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < position.size(); ++i) {
      offset = offset * box.shape[i] + position[i] - box.start[i];
    }
    return offset;
  };
  Extents position = common.start;
  for (;;) {
    RETURN_IF_ERROR(run(offset_in(from, position), offset_in(to, position), length));
    std::size_t i = inner;
    while (i > 0) {
      --i;
      if (++position[i] < common.start[i] + common.shape[i]) break;
      position[i] = common.start[i];
      if (i == 0) return absl::OkStatus();
    }
    if (inner == 0) return absl::OkStatus();
  }
}

struct Slice {
  const TensorSliceInfo* info = nullptr;
  std::string path;  // of its part
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
  bool verified = false;

  Box box() const { return {info->start, info->shape}; }
};

struct Tensor {
  std::string dtype;
  Extents shape;
  std::vector<Slice> slices;
};

absl::Status WrongDigest(const Slice& slice, const std::string& digest) {
  return absl::DataLossError(
      slice.path + ": tensor \"" + slice.info->name + "\": digest is " + digest +
      ", the manifest says " + slice.info->digest +
      "; the file is damaged or of another step, so use an earlier checkpoint");
}

absl::Status VerifySlice(Slice& slice) {
  if (slice.verified) return absl::OkStatus();
  ASSIGN_OR_RETURN(const OpenFile file, OpenFile::ForReading(slice.path));
  std::vector<std::byte> chunk(static_cast<std::size_t>(std::min(kChunkBytes, slice.bytes)));
  Xxh128 digest;
  for (std::int64_t begin = 0; begin < slice.bytes; begin += kChunkBytes) {
    const std::int64_t count = std::min(kChunkBytes, slice.bytes - begin);
    RETURN_IF_ERROR(file.ReadAt(slice.offset + begin, chunk.data(), count));
    digest.Update(chunk.data(), static_cast<std::size_t>(count));
  }
  if (digest.Hex() != slice.info->digest) return WrongDigest(slice, digest.Hex());
  slice.verified = true;
  return absl::OkStatus();
}

// Copies what `slice` has of `wanted` to `out`, which has the shape of `wanted`. Returns how many
// elements these were.
absl::StatusOr<std::int64_t> ReadSlice(Slice& slice, const Box& wanted, std::span<float> out) {
  const Box box = slice.box();
  const Box common = Intersect(box, wanted);
  const std::int64_t elements = common.elements();
  if (elements == 0) return 0;
  ASSIGN_OR_RETURN(const OpenFile file, OpenFile::ForReading(slice.path));
  // Whole and in one piece, as at an unchanged layout: one read serves digest and caller.
  bool digest_from_out = !slice.verified && elements * kElementBytes == slice.bytes;
  if (digest_from_out) {
    RETURN_IF_ERROR(ForEachRun(common, box, wanted, [&](auto, auto, std::int64_t length) {
      digest_from_out = digest_from_out && length == elements;
      return absl::OkStatus();
    }));
  }
  if (!digest_from_out) RETURN_IF_ERROR(VerifySlice(slice));
  RETURN_IF_ERROR(
      ForEachRun(common, box, wanted, [&](std::int64_t from, std::int64_t to, std::int64_t length) {
        float* target = out.data() + to;
        absl::Status status =
            file.ReadAt(slice.offset + from * kElementBytes, target, length * kElementBytes);
        if (!status.ok() || !digest_from_out) return status;
        Xxh128 digest;
        digest.Update(target, static_cast<std::size_t>(slice.bytes));
        slice.verified = digest.Hex() == slice.info->digest;
        return slice.verified ? absl::OkStatus() : WrongDigest(slice, digest.Hex());
      }));
  return elements;
}

// Size and header of a part are what the manifest says: the header is a function of the slices,
// so that a single changed bit shows.
absl::StatusOr<std::int64_t> CheckPartHeader(const std::string& path, const ManifestPart& part) {
  const auto damaged = [&path](const std::string& what) {
    return absl::DataLossError(path + ": " + what + "; use an earlier checkpoint");
  };
  absl::StatusOr<OpenFile> file = OpenFile::ForReading(path);
  if (absl::IsNotFound(file.status())) return damaged("this part is missing");
  RETURN_IF_ERROR(file.status());
  ASSIGN_OR_RETURN(const std::int64_t bytes, file->Size());
  if (bytes != part.bytes) {
    return damaged("it has " + std::to_string(bytes) + " bytes, the manifest says " +
                   std::to_string(part.bytes));
  }
  const auto expected = BuildSafetensorsHeader(part.slices);
  if (!expected.ok()) return damaged(std::string(expected.status().message()));
  std::string start(static_cast<std::size_t>(std::min<std::int64_t>(std::ssize(*expected), bytes)),
                    '\0');
  RETURN_IF_ERROR(file->ReadAt(0, start.data(), std::ssize(start)));
  if (start != *expected) {
    const auto parsed = ParseSafetensorsHeader(start, bytes);
    return damaged(parsed.ok() ? "its header is not the one that the manifest describes"
                               : std::string(parsed.status().message()));
  }
  return std::ssize(*expected);
}

absl::Status CheckDisjoint(const std::string& name, const Tensor& tensor) {
  for (std::size_t i = 0; i < tensor.slices.size(); ++i) {
    for (std::size_t j = i + 1; j < tensor.slices.size(); ++j) {
      const Slice& a = tensor.slices[i];
      const Slice& b = tensor.slices[j];
      if (Intersect(a.box(), b.box()).elements() > 0) {
        return absl::DataLossError("tensor \"" + name + "\": slices in " + a.path + " and " +
                                   b.path + " overlap");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

struct CheckpointReader::Impl {
  std::string folder;
  Manifest manifest;
  std::map<std::string, Tensor> tensors;

  absl::Status AddPart(const ManifestPart& part);
};

absl::Status CheckpointReader::Impl::AddPart(const ManifestPart& part) {
  const std::string path = folder + "/" + part.file;
  ASSIGN_OR_RETURN(std::int64_t offset, CheckPartHeader(path, part));
  for (const TensorSliceInfo& info : part.slices) {
    ASSIGN_OR_RETURN(const std::int64_t bytes, BytesOf(info));
    Tensor& tensor = tensors[info.name];
    if (tensor.slices.empty()) {
      tensor.dtype = info.dtype;
      tensor.shape = info.global_shape;
    }
    if (tensor.dtype != info.dtype || tensor.shape != info.global_shape) {
      return absl::DataLossError(path + ": tensor \"" + info.name +
                                 "\" has another dtype or shape than in " +
                                 tensor.slices.front().path);
    }
    tensor.slices.push_back({&info, path, offset, bytes});
    offset += bytes;
  }
  if (offset == part.bytes) return absl::OkStatus();
  return absl::DataLossError(path + ": its tensors end at byte " + std::to_string(offset) +
                             ", the file at " + std::to_string(part.bytes));
}

CheckpointReader::CheckpointReader() : impl_(std::make_unique<Impl>()) {}
CheckpointReader::~CheckpointReader() = default;

absl::StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::Open(
    const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path, kManifestBytesMax));
  absl::StatusOr<Manifest> manifest = ParseManifest(json);
  if (!manifest.ok()) return Annotate(manifest.status(), path);

  std::unique_ptr<CheckpointReader> reader(new CheckpointReader());
  Impl& impl = *reader->impl_;
  impl.folder = folder;
  impl.manifest = *std::move(manifest);
  for (const ManifestPart& part : impl.manifest.parts) RETURN_IF_ERROR(impl.AddPart(part));
  for (const auto& [name, tensor] : impl.tensors) RETURN_IF_ERROR(CheckDisjoint(name, tensor));
  return reader;
}

const Manifest& CheckpointReader::manifest() const { return impl_->manifest; }

absl::Status CheckpointReader::Read(const std::string& name, std::span<const std::int64_t> start,
                                    std::span<const std::int64_t> shape,
                                    std::span<float> out) const {
  const auto wrong = [&](const std::string& what) {
    return absl::InvalidArgumentError(impl_->folder + ": tensor \"" + name + "\" " + what);
  };
  const auto found = impl_->tensors.find(name);
  if (found == impl_->tensors.end()) return wrong("is not in this checkpoint");
  Tensor& tensor = found->second;
  if (tensor.dtype != "F32") return wrong("is " + tensor.dtype + ", want F32");
  const Box wanted{{start.begin(), start.end()}, {shape.begin(), shape.end()}};
  bool inside = start.size() == tensor.shape.size() && shape.size() == tensor.shape.size();
  for (std::size_t i = 0; inside && i < start.size(); ++i) {
    inside = start[i] >= 0 && shape[i] >= 0 && start[i] <= tensor.shape[i] &&
             shape[i] <= tensor.shape[i] - start[i];
  }
  if (!inside) {
    return wrong("has shape " + TextOf(tensor.shape) + ", which does not hold " + TextOf(shape) +
                 " from " + TextOf(start) + " on");
  }
  if (wanted.elements() != std::ssize(out)) {
    return wrong("fills " + std::to_string(wanted.elements()) + " elements, the buffer has " +
                 std::to_string(out.size()));
  }
  std::int64_t covered = 0;
  for (Slice& slice : tensor.slices) {
    ASSIGN_OR_RETURN(const std::int64_t elements, ReadSlice(slice, wanted, out));
    covered += elements;
  }
  if (covered == wanted.elements()) return absl::OkStatus();
  return absl::DataLossError(impl_->folder + ": tensor \"" + name + "\": the parts hold only " +
                             std::to_string(covered) + " of " + std::to_string(wanted.elements()) +
                             " elements of " + TextOf(shape) + " from " + TextOf(start) +
                             " on; use an earlier checkpoint");
}

absl::Status CheckpointReader::Verify() const {
  const std::string folder = std::filesystem::path(impl_->folder + "/").parent_path().filename();
  const auto named = ParseCheckpointFolderName(folder);
  if (named.has_value() && named->step != impl_->manifest.step) {
    return absl::DataLossError(impl_->folder + "/manifest.json: is of step " +
                               std::to_string(impl_->manifest.step) +
                               ", the folder is another step's; use an earlier checkpoint");
  }
  for (auto& [name, tensor] : impl_->tensors) {
    std::int64_t covered = 0;
    for (Slice& slice : tensor.slices) {
      RETURN_IF_ERROR(VerifySlice(slice));
      covered += Product(slice.info->shape);
    }
    if (covered != Product(tensor.shape)) {
      return absl::DataLossError(impl_->folder + ": tensor \"" + name + "\": the parts hold only " +
                                 std::to_string(covered) + " of " +
                                 std::to_string(Product(tensor.shape)) +
                                 " elements; use an earlier checkpoint");
    }
  }
  return absl::OkStatus();
}

}  // namespace paceline
