#include "worker/data/source_schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {
namespace {

constexpr std::int64_t kPeriodMax = 65536;

// The smallest period in which every share is a whole number of draws; 0: none.
std::int64_t ExactPeriod(const std::vector<double>& shares) {
  for (std::int64_t period = 1; period <= kPeriodMax; ++period) {
    const bool exact = std::all_of(shares.begin(), shares.end(), [&](double share) {
      const double draws = share * static_cast<double>(period);
      return std::round(draws) >= 1 && std::abs(draws - std::round(draws)) <= 1e-12 * draws;
    });
    if (exact) return period;
  }
  return 0;
}

// Largest remainders, at least one draw each; what that costs is taken from the largest quotas.
std::vector<std::int64_t> RoundedQuotas(const std::vector<double>& shares) {
  std::vector<std::int64_t> quotas;
  std::vector<double> remainders;
  for (const double share : shares) {
    const double draws = share * static_cast<double>(kPeriodMax);
    quotas.push_back(std::max<std::int64_t>(1, static_cast<std::int64_t>(draws)));
    remainders.push_back(draws - static_cast<double>(quotas.back()));
  }
  std::int64_t left = kPeriodMax - std::accumulate(quotas.begin(), quotas.end(), std::int64_t{0});
  for (; left > 0; --left) {
    const auto most = std::max_element(remainders.begin(), remainders.end());
    ++quotas[most - remainders.begin()];
    *most -= 1;
  }
  for (; left < 0; ++left) --*std::max_element(quotas.begin(), quotas.end());
  return quotas;
}

}  // namespace

absl::StatusOr<SourceSchedule> SourceSchedule::Build(const std::vector<double>& weights) {
  if (weights.empty() || weights.size() >= kPeriodMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(weights.size(), " sources; a mixture has 1 to ", kPeriodMax - 1));
  }
  double sum = 0;
  for (const double weight : weights) {
    if (!(weight > 0) || !std::isfinite(weight)) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight ", weight, "; it must be a finite number above 0"));
    }
    sum += weight;
  }
  if (!std::isfinite(sum)) return absl::InvalidArgumentError("the weights' sum is not finite");
  std::vector<double> shares;
  for (const double weight : weights) shares.push_back(weight / sum);
  SourceSchedule schedule;
  if (const std::int64_t period = ExactPeriod(shares); period > 0) {
    for (const double share : shares) schedule.quotas_.push_back(std::llround(share * period));
  } else {
    schedule.quotas_ = RoundedQuotas(shares);
  }
  schedule.Fill();
  return schedule;
}

// Draw j (from 0) of a source with quota q of period P may fall into slots
// [floor(j P / q), ceil((j + 1) P / q)): that is to keep within one draw of its share. Taking the
// earliest deadline among the released meets all windows, as the quotas fill the period exactly
// (unit jobs on one machine; Baruah et al. 1996, "Proportionate progress").
void SourceSchedule::Fill() {
  const std::int64_t period = std::accumulate(quotas_.begin(), quotas_.end(), std::int64_t{0});
  std::vector<std::int64_t> drawn(quotas_.size(), 0);
  slots_.reserve(period);
  for (std::int64_t slot = 0; slot < period; ++slot) {
    std::int64_t best = -1;
    std::int64_t best_deadline = std::numeric_limits<std::int64_t>::max();
    for (std::size_t k = 0; k < quotas_.size(); ++k) {
      const std::int64_t release = drawn[k] * period / quotas_[k];
      const std::int64_t deadline = ((drawn[k] + 1) * period + quotas_[k] - 1) / quotas_[k];
      if (drawn[k] < quotas_[k] && release <= slot && deadline < best_deadline) {
        best = static_cast<std::int64_t>(k);
        best_deadline = deadline;
      }
    }
    PACELINE_CHECK(best >= 0 && best_deadline > slot);
    slots_.push_back({static_cast<std::int32_t>(best), static_cast<std::int32_t>(drawn[best]++)});
  }
}

SourceSchedule::Slot SourceSchedule::At(std::int64_t draw) const {
  const PeriodSlot& slot = slots_[draw % period()];
  return {slot.source, draw / period() * quotas_[slot.source] + slot.index};
}

}  // namespace paceline
