#include "common/planning/goodput.h"

#include <algorithm>
#include <cmath>

namespace paceline::planning {
namespace {

// SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195: the same numbers on every machine.
class Uniform {
 public:
  explicit Uniform(std::uint64_t seed) : state_(seed) {}

  // In (0, 1].
  double Next() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (static_cast<double>(z >> 11) + 1) * 0x1.0p-53;
  }

 private:
  std::uint64_t state_;
};

}  // namespace

double YoungInterval(const FailureModel& model) {
  return std::sqrt(2 * model.stall_s * model.mtbf_s);
}

double DalyInterval(const FailureModel& model) {
  if (model.stall_s >= 2 * model.mtbf_s) return model.mtbf_s;
  const double ratio = model.stall_s / (2 * model.mtbf_s);
  return YoungInterval(model) * (1 + std::sqrt(ratio) / 3 + ratio / 9) - model.stall_s;
}

double SimulatedGoodput(const FailureModel& model, double interval_s, std::uint64_t seed,
                        int failures) {
  Uniform uniform(seed);
  const double cycle = interval_s + model.stall_s;
  double elapsed = 0;
  double kept = 0;
  for (int i = 0; i < failures; ++i) {
    const double up = -model.mtbf_s * std::log(uniform.Next());
    // The i-th checkpoint begins i * cycle - stall after the start, and counts once it is written.
    const double written = std::max(0.0, up + model.stall_s - model.write_s);
    kept += std::floor(written / cycle) * interval_s;
    elapsed += up + model.restart_s;
  }
  return kept / elapsed;
}

BestInterval SimulatedBestInterval(const FailureModel& model, std::uint64_t seed) {
  constexpr int kSteps = 16;
  // Without a stall the formulas say "always"; a checkpoint still has to be written first.
  const double around = std::max({DalyInterval(model), model.write_s, 1.0});
  BestInterval best;
  for (int i = -kSteps; i <= kSteps; ++i) {
    const double interval = around * std::exp2(i / 4.0);
    if (interval + model.stall_s < model.write_s) continue;  // one write at a time
    const double goodput = SimulatedGoodput(model, interval, seed);
    if (goodput > best.goodput) best = {interval, goodput};
  }
  return best;
}

}  // namespace paceline::planning
