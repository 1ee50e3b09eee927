// Arena hands out ranges of one block of memory and never gives them back one by one. The same
// code runs twice over it: an arena without memory measures how much will be asked for, one with
// memory of that size then serves it.
// Invariant: ranges begin at multiples of kArenaAlignment and do not overlap, except after Rewind,
// which is how layers share memory that each needs only while it runs.
// Threading: confined to the thread that builds the model.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/check.h"

namespace paceline {

inline constexpr std::int64_t kArenaAlignment = 64;

class Arena {
 public:
  Arena() = default;  // measures: every range is null
  Arena(std::byte* memory, std::int64_t bytes) : memory_(memory), capacity_(bytes) {}

  template <typename T>
  T* Allocate(std::int64_t count) {
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t start = used_;
    used_ += (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
    peak_ = std::max(peak_, used_);
    if (memory_ == nullptr) return nullptr;
    PACELINE_CHECK(used_ <= capacity_);
    return reinterpret_cast<T*>(memory_ + start);
  }

  std::int64_t used() const { return used_; }
  std::int64_t peak() const { return peak_; }  // the most that was ever in use
  // Makes everything allocated since `used` was used() free again.
  void Rewind(std::int64_t used) { used_ = used; }

 private:
  std::byte* memory_ = nullptr;
  std::int64_t capacity_ = 0;
  std::int64_t used_ = 0;
  std::int64_t peak_ = 0;
};

}  // namespace paceline
