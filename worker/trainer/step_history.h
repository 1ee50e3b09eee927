// The records of a rank's last steps. They are part of its state: whoever takes that up can tell
// again what was lost with an agent that had not yet written it.
// Threading: belongs to the step thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace paceline {

class StepHistory {
 public:
  static constexpr std::int64_t kSteps = 1024;

  struct Entry {
    std::int64_t step = 0;  // completed with it; 0: there is none
    double loss = 0;
    double grad_norm = 0;
    double step_seconds = 0;
  };

  void Add(const Entry& entry) { entries_[PlaceOf(entry.step)] = entry; }
  // Null: it is not known.
  const Entry* Find(std::int64_t step) const {
    const Entry& entry = entries_[PlaceOf(step)];
    return step > 0 && entry.step == step ? &entry : nullptr;
  }
  // As it is sent and kept.
  std::span<std::byte> bytes() { return std::as_writable_bytes(std::span(entries_)); }

 private:
  static std::size_t PlaceOf(std::int64_t step) { return static_cast<std::size_t>(step % kSteps); }

  std::array<Entry, static_cast<std::size_t>(kSteps)> entries_ = {};
};

}  // namespace paceline
