// The block of memory behind a model's arena, from the operating system, zeroed, given back when
// this object goes.
// Invariant: either empty or owns one mapping.
// Threading: a value; belongs to its holder's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/status.h"

namespace paceline {

class ArenaMemory {
 public:
  ArenaMemory() = default;
  ArenaMemory(ArenaMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  ArenaMemory& operator=(ArenaMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~ArenaMemory();

  // kResourceExhausted: the system refuses that much.
  static absl::StatusOr<ArenaMemory> Map(std::int64_t bytes);

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace paceline
