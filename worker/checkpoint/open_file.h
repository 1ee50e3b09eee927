// An open file that closes itself, and whole reads and writes on it.
// Invariant: fd() is open for as long as the object lives.
// Threading: one thread at a time.
#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"

namespace paceline {

class OpenFile {
 public:
  // For reading. kNotFound: there is none.
  static absl::StatusOr<OpenFile> ForReading(const std::string& path);
  // A new one; kAlreadyExists: there is one.
  static absl::StatusOr<OpenFile> New(const std::string& path);

  OpenFile(OpenFile&& other) noexcept;
  OpenFile& operator=(OpenFile&&) = delete;
  ~OpenFile();

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  absl::StatusOr<std::int64_t> Size() const;
  // kDataLoss: the file ends before.
  absl::Status ReadAt(std::int64_t offset, void* data, std::int64_t bytes) const;
  absl::Status WriteAt(std::int64_t offset, const void* data, std::int64_t bytes) const;

 private:
  OpenFile(int fd, std::string path);
  int fd_;
  std::string path_;
};

}  // namespace paceline
