#include "worker/huggingface/tensor_file.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "common/check.h"
#include "common/files.h"
#include "worker/checkpoint/safetensors.h"

namespace paceline::huggingface {

TensorFile::TensorFile(OpenFile file, ManifestPart part)
    : file_(std::move(file)), part_(std::move(part)), digest_(std::make_unique<Xxh128>()) {}

absl::StatusOr<std::unique_ptr<TensorFile>> TensorFile::New(const std::string& path,
                                                            std::vector<TensorSliceInfo> slices,
                                                            const std::string& format) {
  ASSIGN_OR_RETURN(const std::string header, BuildSafetensorsHeader(slices, format));
  ASSIGN_OR_RETURN(OpenFile file, OpenFile::New(path));
  RETURN_IF_ERROR(file.WriteAt(0, header.data(), std::ssize(header)));
  ManifestPart part;
  part.file = std::filesystem::path(path).filename().string();
  part.slices = std::move(slices);
  std::unique_ptr<TensorFile> tensors(new TensorFile(std::move(file), std::move(part)));
  tensors->position_ = std::ssize(header);
  if (!tensors->part_.slices.empty()) {
    ASSIGN_OR_RETURN(tensors->left_, BytesOf(tensors->part_.slices.front()));
  }
  RETURN_IF_ERROR(tensors->CloseFullTensors());
  return tensors;
}

// Also passes over tensors without elements.
absl::Status TensorFile::CloseFullTensors() {
  while (tensor_ < part_.slices.size() && left_ == 0) {
    part_.slices[tensor_].digest = digest_->Hex();
    digest_ = std::make_unique<Xxh128>();
    if (++tensor_ == part_.slices.size()) break;
    ASSIGN_OR_RETURN(left_, BytesOf(part_.slices[tensor_]));
  }
  return absl::OkStatus();
}

absl::Status TensorFile::Append(const void* data, std::int64_t bytes) {
  PACELINE_CHECK(bytes <= left_);
  if (bytes == 0) return absl::OkStatus();
  RETURN_IF_ERROR(file_.WriteAt(position_, data, bytes));
  digest_->Update(data, static_cast<std::size_t>(bytes));
  position_ += bytes;
  left_ -= bytes;
  return CloseFullTensors();
}

absl::StatusOr<ManifestPart> TensorFile::Finish() {
  PACELINE_CHECK(tensor_ == part_.slices.size());
  if (::fsync(file_.fd()) != 0) return ErrnoStatus(errno, "fsync of " + file_.path());
  part_.bytes = position_;
  return std::move(part_);
}

}  // namespace paceline::huggingface
