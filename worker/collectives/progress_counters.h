// What a rank has entered and left, as one thread writes it and any thread reads it.
// Invariant: left <= entered <= left + 1.
// Threading: Enter and Leave belong to the thread that runs the operations; Read is for any.
#pragma once

#include <atomic>
#include <cstdint>

#include "worker/collectives/communicator.h"

namespace paceline {

class ProgressCounters {
 public:
  // `name` is a string literal.
  void Enter(const char* name) {
    operation_.store(name, std::memory_order_relaxed);
    entered_.fetch_add(1, std::memory_order_release);
  }

  void Leave() { left_.fetch_add(1, std::memory_order_release); }

  CommunicatorProgress Read() const {
    CommunicatorProgress progress;
    // `left` first: an operation that begins in between then shows as entered, never as one
    // that was left before it was entered.
    progress.left = left_.load(std::memory_order_acquire);
    progress.entered = entered_.load(std::memory_order_acquire);
    progress.operation = operation_.load(std::memory_order_relaxed);
    return progress;
  }

 private:
  std::atomic<const char*> operation_{""};
  std::atomic<std::uint64_t> entered_{0};
  std::atomic<std::uint64_t> left_{0};
};

}  // namespace paceline
