// A safetensors file that is written from its beginning to its end, so that no more than a piece
// of it need be in memory.
// Invariant: a file whose Finish succeeded is durable and whole.
// Threading: one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/manifest.h"
#include "common/status.h"
#include "common/xxh128.h"
#include "worker/checkpoint/open_file.h"

namespace paceline::huggingface {

class TensorFile {
 public:
  // A new file of these tensors, in this order. `format`: for the header's metadata; transformers
  // reads "pt".
  static absl::StatusOr<std::unique_ptr<TensorFile>> New(const std::string& path,
                                                         std::vector<TensorSliceInfo> slices,
                                                         const std::string& format);

  // The next bytes, within one tensor.
  absl::Status Append(const void* data, std::int64_t bytes);
  // Every byte was appended. Makes the file durable; the slices have digests then.
  absl::StatusOr<ManifestPart> Finish();

 private:
  TensorFile(OpenFile file, ManifestPart part);
  absl::Status CloseFullTensors();

  OpenFile file_;
  ManifestPart part_;
  std::int64_t position_ = 0;
  std::size_t tensor_ = 0;  // that the next byte belongs to
  std::int64_t left_ = 0;   // bytes of it
  std::unique_ptr<Xxh128> digest_;
};

}  // namespace paceline::huggingface
