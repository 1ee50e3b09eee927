// Which source each draw of a weighted mixture comes from: a schedule that repeats, so that any
// draw is found in O(1).
// Invariant: in each period source k gets exactly quota(k) draws, and within it never strays from
// its share by a whole draw.
// Threading: immutable after Build.
#pragma once

#include <cstdint>
#include <vector>

#include "common/status.h"

namespace paceline {

class SourceSchedule {
 public:
  // Shares are the weights over their sum, as integers of the smallest period up to 65536 that
  // holds them exactly (to 1e-12), else of 65536, rounded, with at least one draw for each source.
  // kInvalidArgument: no weight, or one that is not positive and finite, or 65536 and more.
  static absl::StatusOr<SourceSchedule> Build(const std::vector<double>& weights);

  struct Slot {
    std::int64_t source;
    std::int64_t index;  // how many draws of that source came before
  };
  Slot At(std::int64_t draw) const;

  std::int64_t period() const { return static_cast<std::int64_t>(slots_.size()); }
  std::int64_t quota(std::int64_t source) const { return quotas_[source]; }

 private:
  struct PeriodSlot {
    std::int32_t source;
    std::int32_t index;
  };
  void Fill();

  std::vector<std::int64_t> quotas_;
  std::vector<PeriodSlot> slots_;
};

}  // namespace paceline
