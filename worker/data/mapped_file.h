// A file mapped read-only, and the advice given to the page cache about it.
// Invariant: the mapping lives as long as the object. The file must not be cut while mapped:
// touching a page beyond its end kills the process (SIGBUS), which recovery handles like any
// other death.
// Threading: const methods from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/status.h"

namespace paceline {

class MappedFile {
 public:
  // kNotFound, kUnavailable: it cannot be opened or mapped. An empty file maps to no bytes.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Reads come in no order, so reading ahead of them is waste.
  void AdviseRandom() const;
  // Bytes [begin, begin + count) are read soon.
  void WillNeed(std::int64_t begin, std::int64_t count) const;

 private:
  MappedFile(std::byte* data, std::size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace paceline
