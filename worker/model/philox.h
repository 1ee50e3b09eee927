// Philox4x32-10, a counter-based random generator: 128 random bits as a pure function of a
// counter and a key, so that any element of any random stream is computed without the others.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
// Invariant: equal counter and key give equal bits on every machine.
// Threading: pure function.
#pragma once

#include <array>
#include <cstdint>

namespace paceline {

inline std::array<std::uint32_t, 4> Philox4x32(std::array<std::uint32_t, 4> counter,
                                               std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

}  // namespace paceline
