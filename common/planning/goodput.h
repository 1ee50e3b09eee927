// How much of a run's time failures cost, and how often to write checkpoints.
// Invariant: the simulation is a function of its seed.
// Threading: pure functions.
#pragma once

#include <cstdint>

namespace paceline::planning {

struct FailureModel {
  double mtbf_s = 0;     // of the whole run: a node's, divided by the nodes
  double stall_s = 0;    // what a checkpoint holds up
  double write_s = 0;    // from its beginning until it is committed: a failure before loses it
  double restart_s = 0;  // from a failure to the first step after it
};

// The interval between checkpoints that loses the least, by the formulas:
// Young 1974, doi:10.1145/361147.361115: sqrt(2 * stall * mtbf).
double YoungInterval(const FailureModel& model);
// Daly 2006, doi:10.1016/j.future.2004.11.016, equation 37, a higher-order estimate.
double DalyInterval(const FailureModel& model);

// The share of time that steps count, with checkpoints every `interval_s` of training: failures
// come as a Poisson process, a failure takes back what was trained since the last committed
// checkpoint began. `failures`: so many are drawn.
double SimulatedGoodput(const FailureModel& model, double interval_s, std::uint64_t seed,
                        int failures = 20'000);

struct BestInterval {
  double seconds = 0;
  double goodput = 0;
};
// The best of intervals at ratios of 2^(1/4) around Daly's, by simulation with equal failures.
BestInterval SimulatedBestInterval(const FailureModel& model, std::uint64_t seed);

}  // namespace paceline::planning
