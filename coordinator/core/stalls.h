// When a generation stands still, and which of its ranks is at fault.
//
// Ranks tell by their telemetry how far they are: steps done, collective operations entered and
// left, what the step thread is about, whether it waits for others, processor time used. Where
// nothing of that moves beyond the limit, the one rank is looked for that the others wait for:
//   1. a rank whose worker has fallen silent while its agent speaks (a stopped process),
//   2. else one that waits for nobody: the one that has not moved for longest,
//   3. else, where all wait: one that has not left an operation that others have left, then one
//      that has not entered it, then the one that lags in steps.
// No verdict falls while a node is out of hearing, a rank has no window, or a rank that waits for
// nobody still gets processor time but less than its steps take: that one is slow, not stuck.
// Invariant: time counts while heartbeats come, and no gap between two counts for more than two
// heartbeats: the absence of a coordinator or of its nodes is nobody's stall.
// Threading: confined to the coordinator loop; holds no lock.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/timeouts.h"
#include "paceline/v1/training.pb.h"

namespace paceline::core {

// The median of the last few step times, so that neither one slow step nor one fast one sets the
// limit, and steps that grow slower take it along.
class StepTimes {
 public:
  void Add(double seconds);
  double Median() const;  // 0: none is known

 private:
  static constexpr std::size_t kKept = 9;
  std::array<double, kKept> seconds_ = {};
  std::size_t count_ = 0;
};

struct Stall {
  std::int32_t rank = 0;
  std::string known;     // what the counters say, as the end of a sentence about the rank
  std::string inferred;  // what may be behind it
  double seconds = 0;    // that the generation has stood still
};

class StallWatch {
 public:
  struct Options {
    Timeouts limits;
    std::int64_t eval_batches = 0;
    // Every rank takes part in the same operations in one order (no stages, no expert groups), so
    // that counts of two ranks can be compared.
    bool same_operations = false;
  };

  // A heartbeat of one of the generation's nodes has come; then what it tells.
  void Listen(const Options& options, SteadyTime now);
  void Hear(const v1::RankProgress& rank, SteadyTime now);
  void HearStep(std::int64_t step, double seconds);

  // The rank at fault, where the generation of `world` ranks has stood still for too long.
  std::optional<Stall> Judge(const Options& options, std::size_t world, SteadyTime now);

 private:
  using Duration = std::chrono::steady_clock::duration;
  enum class State { kSilent, kWorking, kWaiting };

  struct Rank {
    bool told = false;
    SteadyTime heard_at;
    Duration moved_at{};  // by listened_
    std::int64_t step = 0;
    std::string operation;
    std::uint64_t entered = 0;
    std::uint64_t left = 0;
    v1::RankPhase phase = v1::RANK_PHASE_UNSPECIFIED;
    bool waiting = false;
    std::chrono::milliseconds telemetry_age{};
    double cpu_seconds = 0;
    double cpu_at_move = 0;
    std::int64_t first_step = 0;  // when it was first heard
    double first_cpu_seconds = 0;
  };
  struct Limit {
    Duration all{};
    std::string text;
  };

  Limit LimitOf(const Options& options, v1::RankPhase phase) const;
  State StateOf(const Rank& rank, Duration limit) const;
  bool IsStarved(const Options& options, const Rank& rank) const;
  bool AnyStarved(const Options& options, const std::vector<State>& states, State state) const;
  // Of the ranks in `state`, the first for which no other comes `before` it.
  template <typename Before>
  std::size_t FirstBy(const std::vector<State>& states, State state, Before before) const;
  std::size_t CulpritOf(const Options& options, const std::vector<State>& states,
                        State state) const;
  Stall Describe(const Options& options, const std::vector<State>& states, std::size_t culprit,
                 const Limit& limit) const;
  // The operation that most others wait in.
  struct Waiters {
    std::string operation;  // in quotes
    std::string they;       // "ranks 0 and 3 have"
    std::size_t one = 0;    // of them
  };
  std::optional<Waiters> MostWaiters(const std::vector<State>& states, std::size_t culprit) const;
  // How the rank stands to it.
  std::string Relation(const Options& options, const std::vector<State>& states,
                       std::size_t culprit) const;
  double SecondsStill(const Rank& rank) const;

  StepTimes step_times_;
  std::int64_t step_ = 0;  // of the latest record
  std::vector<Rank> ranks_;
  std::optional<SteadyTime> last_heard_;
  Duration listened_{};
  Duration moved_at_{};  // the latest of any rank, by listened_
  Duration next_look_{};
};

}  // namespace paceline::core
