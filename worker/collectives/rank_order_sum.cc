#include "worker/collectives/rank_order_sum.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace paceline {
namespace {

// Blocks that stay in the first-level cache, so that each addend is read once and the result
// written once, whatever the number of ranks.
constexpr std::size_t kBlockBytes = 8192;

template <typename T>
void Sum(std::span<const void* const> addends, void* out, std::size_t count) {
  constexpr std::size_t kBlock = kBlockBytes / sizeof(T);
  alignas(64) T sum[kBlock];
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t length = std::min(kBlock, count - begin);
    std::memcpy(sum, static_cast<const T*>(addends[0]) + begin, length * sizeof(T));
    for (const void* addend : addends.subspan(1)) {
      const T* values = static_cast<const T*>(addend) + begin;
      for (std::size_t i = 0; i < length; ++i) sum[i] = static_cast<T>(sum[i] + values[i]);
    }
    std::memcpy(static_cast<T*>(out) + begin, sum, length * sizeof(T));
  }
}

}  // namespace

void SumInRankOrder(std::span<const void* const> addends, void* out, std::size_t count,
                    DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return Sum<float>(addends, out, count);
    case DataType::kFloat64:
      return Sum<double>(addends, out, count);
    // Unsigned, because overflow of signed integers is undefined and wrapping is wanted.
    case DataType::kInt32:
      return Sum<std::uint32_t>(addends, out, count);
    case DataType::kInt64:
      return Sum<std::uint64_t>(addends, out, count);
    case DataType::kUint8:
      return Sum<std::uint8_t>(addends, out, count);
  }
}

}  // namespace paceline
