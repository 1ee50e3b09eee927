// While it lives, this thread's floating-point operations take denormal numbers (of magnitudes
// below 2^-126 in float32) for zero, as operands and as results. x86-64 CPUs can be many times
// slower with them (docs/decisions/denormals.md). Where there is no such mode (neither x86-64 nor
// AArch64) it does nothing.
// Threading: lives and dies on one thread.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace paceline {

class FlushDenormals {
 public:
  FlushDenormals() : before_(Read()) { Write(before_ | kFlush); }
  ~FlushDenormals() { Write(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr std::uint64_t kFlush = 0x8040;  // MXCSR: FZ for results, DAZ for operands
  static std::uint64_t Read() { return _mm_getcsr(); }
  static void Write(std::uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
  static constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;  // FPCR: FZ, for both
  static std::uint64_t Read() {
    std::uint64_t mode = 0;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void Write(std::uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  static constexpr std::uint64_t kFlush = 0;
  static std::uint64_t Read() { return 0; }
  static void Write(std::uint64_t) {}
#endif

  const std::uint64_t before_;
};

}  // namespace paceline
