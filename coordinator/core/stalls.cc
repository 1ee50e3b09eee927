#include "coordinator/core/stalls.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "absl/strings/str_cat.h"

namespace paceline::core {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;

// Heartbeats of silence after which nothing is known of a node's ranks.
constexpr int kHearing = 3;
// What a gap between two heartbeats counts for at most.
constexpr int kGapMax = 2;
// A rank that gets less of the processor than this is not at work: its telemetry alone takes some.
constexpr double kIdleShare = 0.02;
constexpr std::size_t kRanksNamed = 8;

std::string Seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, seconds < 10 ? "%.2g s" : "%.0f s", seconds);
  return text;
}

std::string Quoted(const std::string& operation) { return absl::StrCat("\"", operation, "\""); }

// "rank 3", "ranks 0, 1 and 3", "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more".
std::string Names(const std::vector<std::size_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  const bool cut = ranks.size() > kRanksNamed;
  const std::size_t named = cut ? kRanksNamed : ranks.size();
  for (std::size_t i = 0; i < named; ++i) {
    if (i > 0) absl::StrAppend(&text, i + 1 == named && !cut ? " and " : ", ");
    absl::StrAppend(&text, ranks[i]);
  }
  if (cut) absl::StrAppend(&text, " and ", ranks.size() - named, " more");
  return text;
}

}  // namespace

void StepTimes::Add(double seconds) {
  if (!std::isfinite(seconds) || seconds <= 0) return;
  seconds_[count_++ % kKept] = seconds;
}

double StepTimes::Median() const {
  const std::size_t kept = std::min(count_, kKept);
  if (kept == 0) return 0;
  std::array<double, kKept> sorted = seconds_;
  std::sort(sorted.begin(), sorted.begin() + kept);
  return sorted[kept / 2];
}

void StallWatch::Listen(const Options& options, SteadyTime now) {
  if (last_heard_) {
    listened_ += std::min<Duration>(now - *last_heard_, kGapMax * options.limits.heartbeat);
  }
  last_heard_ = now;
}

void StallWatch::Hear(const v1::RankProgress& progress, SteadyTime now) {
  const auto index = static_cast<std::size_t>(progress.rank());
  if (index >= ranks_.size()) ranks_.resize(index + 1);
  Rank& rank = ranks_[index];
  const bool moved = !rank.told || rank.step != progress.step() ||
                     rank.entered != progress.operations_entered() ||
                     rank.left != progress.operations_left() || rank.phase != progress.phase() ||
                     rank.waiting != progress.waiting();
  if (!rank.told) {
    rank.first_step = progress.step();
    rank.first_cpu_seconds = progress.cpu_seconds();
  }
  rank.told = true;
  rank.heard_at = now;
  rank.step = progress.step();
  rank.operation = progress.operation();
  rank.entered = progress.operations_entered();
  rank.left = progress.operations_left();
  rank.phase = progress.phase();
  rank.waiting = progress.waiting();
  rank.telemetry_age = milliseconds(std::max<std::int64_t>(0, progress.telemetry_age_ms()));
  rank.cpu_seconds = progress.cpu_seconds();
  if (!moved) return;
  rank.cpu_at_move = rank.cpu_seconds;
  rank.moved_at = moved_at_ = listened_;
}

void StallWatch::HearStep(std::int64_t step, double seconds) {
  if (step <= step_) return;
  step_ = step;
  step_times_.Add(seconds);
  moved_at_ = listened_;
}

StallWatch::Limit StallWatch::LimitOf(const Options& options, v1::RankPhase phase) const {
  milliseconds fixed = options.limits.progress;
  std::int64_t steps = kPatienceSteps;
  switch (phase) {
    case v1::RANK_PHASE_EVALUATION:
      fixed = options.limits.evaluation;
      steps *= std::max<std::int64_t>(1, options.eval_batches);
      break;
    case v1::RANK_PHASE_CHECKPOINT:
      fixed = options.limits.checkpoint;
      break;
    default:  // one that has told nothing has stepped as the others have
      break;
  }
  const double median = step_times_.Median();
  const duration<double> added(std::min(static_cast<double>(steps) * median, 1e8));
  return {fixed + std::chrono::duration_cast<Duration>(added),
          absl::StrCat(Seconds(duration<double>(fixed).count()), " + ", steps, " x ",
                       Seconds(median), ", the median step")};
}

StallWatch::State StallWatch::StateOf(const Rank& rank, Duration limit) const {
  // The ranks stand still for longer than `limit` by now, and the silence came before.
  if (rank.telemetry_age * 2 > limit || rank.phase == v1::RANK_PHASE_UNSPECIFIED) {
    return State::kSilent;
  }
  return rank.waiting ? State::kWaiting : State::kWorking;
}

bool StallWatch::IsStarved(const Options& options, const Rank& rank) const {
  const double still = SecondsStill(rank);
  const double used = rank.cpu_seconds - rank.cpu_at_move;
  if (!(used >= kIdleShare * still)) return false;
  const std::int64_t steps = rank.step - rank.first_step;
  const double step_cpu =
      steps > 0 ? (rank.cpu_seconds - rank.first_cpu_seconds) / static_cast<double>(steps) : 0;
  const double fixed = duration<double>(LimitOf(options, rank.phase).all).count() -
                       kPatienceSteps * step_times_.Median();
  return used < fixed + kPatienceSteps * std::max(step_cpu, step_times_.Median());
}

bool StallWatch::AnyStarved(const Options& options, const std::vector<State>& states,
                            State state) const {
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (states[i] == state && IsStarved(options, ranks_[i])) return true;
  }
  return false;
}

std::optional<Stall> StallWatch::Judge(const Options& options, std::size_t world, SteadyTime now) {
  if (step_times_.Median() == 0 || ranks_.size() != world) return std::nullopt;
  Limit limit = LimitOf(options, v1::RANK_PHASE_STEP);
  if (listened_ - moved_at_ < limit.all || listened_ < next_look_) return std::nullopt;
  next_look_ = listened_ + options.limits.heartbeat;
  bool tells_phases = false;
  for (const Rank& rank : ranks_) {
    if (!rank.told || now - rank.heard_at > kHearing * options.limits.heartbeat) {
      return std::nullopt;
    }
    tells_phases = tells_phases || rank.phase != v1::RANK_PHASE_UNSPECIFIED;
    if (Limit own = LimitOf(options, rank.phase); own.all > limit.all) limit = std::move(own);
  }
  if (!tells_phases || listened_ - moved_at_ < limit.all) return std::nullopt;
  std::vector<State> states;
  states.reserve(world);
  for (const Rank& rank : ranks_) {
    states.push_back(StateOf(rank, limit.all));
    if (rank.phase == v1::RANK_PHASE_WINDOW && states.back() != State::kSilent) return std::nullopt;
  }
  for (const State state : {State::kSilent, State::kWorking, State::kWaiting}) {
    if (std::find(states.begin(), states.end(), state) == states.end()) continue;
    if (state != State::kSilent && AnyStarved(options, states, state)) return std::nullopt;
    Stall stall = Describe(options, states, CulpritOf(options, states, state), limit);
    stall.seconds = std::chrono::duration<double>(listened_ - moved_at_).count();
    return stall;
  }
  return std::nullopt;
}

template <typename Before>
std::size_t StallWatch::FirstBy(const std::vector<State>& states, State state,
                                Before before) const {
  std::size_t first = states.size();
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (states[i] != state) continue;
    if (first == states.size() || before(ranks_[i], ranks_[first])) first = i;
  }
  return first;
}

std::size_t StallWatch::CulpritOf(const Options& options, const std::vector<State>& states,
                                  State state) const {
  switch (state) {
    case State::kSilent:
      return FirstBy(states, state, [](const Rank& a, const Rank& b) {
        return a.telemetry_age > b.telemetry_age;
      });
    case State::kWorking:
      return FirstBy(states, state,
                     [](const Rank& a, const Rank& b) { return a.moved_at < b.moved_at; });
    case State::kWaiting:
      break;
  }
  return FirstBy(states, state, [&options](const Rank& a, const Rank& b) {
    if (options.same_operations && a.left != b.left) return a.left < b.left;
    if (options.same_operations && a.entered != b.entered) return a.entered < b.entered;
    if (a.step != b.step) return a.step < b.step;
    return a.moved_at < b.moved_at;
  });
}

double StallWatch::SecondsStill(const Rank& rank) const {
  return duration<double>(listened_ - rank.moved_at).count();
}

std::optional<StallWatch::Waiters> StallWatch::MostWaiters(const std::vector<State>& states,
                                                           std::size_t culprit) const {
  std::map<std::string, std::vector<std::size_t>> waiters;
  for (std::size_t i = 0; i < states.size(); ++i) {
    const Rank& other = ranks_[i];
    if (i == culprit || states[i] != State::kWaiting || other.entered == other.left) continue;
    waiters[other.operation].push_back(i);
  }
  if (waiters.empty()) return std::nullopt;
  const auto most = std::max_element(
      waiters.begin(), waiters.end(),
      [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  return Waiters{
      .operation = Quoted(most->first),
      .they = absl::StrCat(Names(most->second), most->second.size() == 1 ? " has" : " have"),
      .one = most->second.front()};
}

std::string StallWatch::Relation(const Options& options, const std::vector<State>& states,
                                 std::size_t culprit) const {
  const Rank& rank = ranks_[culprit];
  const bool inside = rank.entered > rank.left;
  const std::optional<Waiters> waiters = MostWaiters(states, culprit);
  if (!waiters) {
    return inside ? absl::StrCat("is in ", Quoted(rank.operation))
                  : "is in no collective operation, and nor is any other rank";
  }
  const auto& [operation, they, index] = *waiters;
  const Rank& one = ranks_[index];
  const std::string wait =
      absl::StrCat(", which ", they, " been in for ", Seconds(SecondsStill(one)));
  if (inside && options.same_operations && rank.left < one.left) {
    return absl::StrCat("has not left ", Quoted(rank.operation), ", which ", they,
                        " left; they are in ", operation);
  }
  if (options.same_operations && rank.entered < one.entered) {
    return absl::StrCat("has not entered ", operation, wait);
  }
  if (!inside) return absl::StrCat("is not in ", operation, wait);
  if (Quoted(rank.operation) == operation && options.same_operations &&
      rank.entered == one.entered) {
    return absl::StrCat("has entered ", operation, " and not left it", wait);
  }
  return absl::StrCat("is in ", Quoted(rank.operation), "; ", they, " been in ", operation, " for ",
                      Seconds(SecondsStill(one)));
}

Stall StallWatch::Describe(const Options& options, const std::vector<State>& states,
                           std::size_t culprit, const Limit& limit) const {
  const Rank& rank = ranks_[culprit];
  Stall stall;
  stall.rank = static_cast<std::int32_t>(culprit);
  const auto of_state = [&states](State state) {
    return static_cast<std::size_t>(std::count(states.begin(), states.end(), state));
  };
  std::int64_t step = 0;
  for (const Rank& each : ranks_) step = std::max(step, each.step);
  switch (states[culprit]) {
    case State::kSilent: {
      // What it told last is older than what the others did since, so it is not compared.
      const std::optional<Waiters> waiters = MostWaiters(states, culprit);
      stall.known = absl::StrCat(
          "is silent: its agent has heard nothing of its worker ",
          rank.phase == v1::RANK_PHASE_UNSPECIFIED
              ? "in this generation"
              : absl::StrCat("for ", Seconds(duration<double>(rank.telemetry_age).count())));
      if (waiters) {
        absl::StrAppend(&stall.known, ", while ", waiters->they, " been in ", waiters->operation,
                        " for ", Seconds(SecondsStill(ranks_[waiters->one])));
      }
      if (const std::size_t more = of_state(State::kSilent) - 1; more > 0) {
        absl::StrAppend(&stall.known, "; silent too: ", more, " other workers");
      }
      stall.inferred = absl::StrCat(
          "its worker is stopped as a whole",
          waiters ? absl::StrCat(" and has not done its part of ", waiters->operation) : "");
      break;
    }
    case State::kWorking:
      stall.known = absl::StrCat(Relation(options, states, culprit),
                                 "; it waits for no other rank and has used ",
                                 Seconds(std::max(0.0, rank.cpu_seconds - rank.cpu_at_move)),
                                 " of processor time in ", Seconds(SecondsStill(rank)));
      stall.inferred = "it hangs in its own work: computing, or reading data";
      break;
    case State::kWaiting:
      stall.known =
          absl::StrCat(Relation(options, states, culprit), "; every rank waits for others");
      stall.inferred =
          "it, or what connects it with the others, is at fault: it is furthest behind";
      break;
  }
  absl::StrAppend(&stall.known, "; nothing has moved for ",
                  Seconds(duration<double>(listened_ - moved_at_).count()), " after step ", step,
                  ", the limit is ", Seconds(duration<double>(limit.all).count()), " (", limit.text,
                  ")");
  return stall;
}

}  // namespace paceline::core
