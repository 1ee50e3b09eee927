// A text file read front to back, plain or gzip-compressed.
// Invariant: what Read returns holds no NUL byte: a file that has one is binary, and refused.
// Threading: one object belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/status.h"

struct gzFile_s;

namespace paceline {

class TextInput {
 public:
  // kNotFound, kPermissionDenied, kInvalidArgument: names the file.
  static absl::StatusOr<TextInput> Open(const std::string& path);
  TextInput(TextInput&& other) noexcept;
  ~TextInput();

  // Fills `out` with what comes next; fewer bytes only at the end. kInvalidArgument: the file is
  // binary, or its compressed data is damaged or cut short.
  absl::StatusOr<std::size_t> Read(std::span<char> out);

 private:
  TextInput(std::string path, gzFile_s* file) : path_(std::move(path)), file_(file) {}

  std::string path_;
  gzFile_s* file_;
  std::int64_t read_ = 0;
};

}  // namespace paceline
