#include "common/planning/planner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline::planning {
namespace {

constexpr std::size_t kSimulated = 24;
constexpr std::size_t kKept = 3;
constexpr int kVirtualStagesMax = 8;
constexpr std::int64_t kMicroBatchMax = 64;

struct Estimate {
  Candidate candidate;
  double seconds = 0;
};

std::vector<int> DivisorsOf(std::int64_t value, std::int64_t at_most) {
  std::vector<int> divisors;
  for (std::int64_t i = 1; i <= std::min(value, at_most); ++i) {
    if (value % i == 0) divisors.push_back(static_cast<int>(i));
  }
  return divisors;
}

// Schedules that a pipeline of `stages` can run: name and segments a stage.
std::vector<std::pair<std::string, int>> SchedulesOf(int stages, std::int64_t layers) {
  if (stages == 1) return {{"1f1b", 1}};
  std::vector<std::pair<std::string, int>> schedules = {{"1f1b", 1}, {"zero-bubble", 1}};
  for (int segments = 2; segments <= kVirtualStagesMax && stages * segments <= layers; ++segments) {
    schedules.emplace_back("interleaved", segments);
  }
  return schedules;
}

// Calls `visit` with every layout over all slots whose numbers fit, in a fixed order.
template <typename Visit>
void ForEachCandidate(const RunFile& run_file, const Machine& machine, const Visit& visit) {
  const std::int64_t layers = run_file.model.num_hidden_layers;
  const std::int64_t experts = std::max<std::int64_t>(1, run_file.model.n_routed_experts);
  for (const int stages : DivisorsOf(machine.slots(), layers)) {
    const std::int64_t data = machine.slots() / stages;
    if (run_file.train.global_batch_size % data != 0) continue;
    const std::int64_t sequences = run_file.train.global_batch_size / data;
    for (const int expert : DivisorsOf(experts, data)) {
      for (const auto& [schedule, segments] : SchedulesOf(stages, layers)) {
        for (const bool shard : {false, true}) {
          if (shard && data == 1) continue;
          for (std::int64_t rows = 1; rows <= std::min(sequences, kMicroBatchMax); rows *= 2) {
            const Candidate candidate{.layout = {.pipeline = stages,
                                                 .data = static_cast<int>(data),
                                                 .expert = expert,
                                                 .virtual_stages = segments,
                                                 .schedule = schedule,
                                                 .shard_optimizer = shard},
                                      .micro_batch_size = rows};
            if (CheckLayout(run_file, candidate, machine).ok()) visit(candidate);
          }
        }
      }
    }
  }
}

double FullestRank(const RunFile& run_file, const Candidate& candidate, const Machine& machine) {
  const std::vector<RankMemory> stages = MemoryOfStages(run_file, candidate, machine);
  return stages[FullestOf(stages)].total();
}

std::string Percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%", 100 * share);
  return text;
}

// What costs the most beside computing.
std::string WhatItPays(const StepSimulation& step) {
  const StageParts mean = MeanOf(step.stages);
  std::string text =
      absl::StrCat("computes ", Percent(mean.compute / step.seconds), " of the step");
  const std::vector<std::pair<const char*, double>> parts = {
      {"waiting for other stages", mean.bubble},
      {"exchange with experts", mean.exchange},
      {"sends between stages", mean.send},
      {"gradient reduction", mean.gradients},
      {"the optimizer", mean.optimizer}};
  for (const auto& [name, seconds] : parts) {
    if (seconds > 0.005 * step.seconds) {
      absl::StrAppend(&text, ", ", Percent(seconds / step.seconds), " ", name);
    }
  }
  return text;
}

// Differs in segments a stage or in the micro-batch alone: no choice of its own.
bool IsVariantOf(const ParallelLayout& layout, const ParallelLayout& of) {
  return layout.pipeline == of.pipeline && layout.expert == of.expert &&
         layout.schedule == of.schedule && layout.shard_optimizer == of.shard_optimizer;
}

// The layout nearest to fitting, or the smallest that fits: for refusals.
std::string NearestThatFits(const RunFile& run_file, const Machine& machine,
                            const Candidate& given) {
  const auto distance = [&](const Candidate& other) {
    const auto apart = [](double a, double b) { return std::abs(std::log2(a / b)); };
    return apart(other.layout.pipeline, given.layout.pipeline) +
           apart(other.layout.expert, given.layout.expert) +
           apart(static_cast<double>(other.micro_batch_size),
                 static_cast<double>(given.micro_batch_size)) +
           0.5 * (other.layout.shard_optimizer != given.layout.shard_optimizer) +
           0.25 * (other.layout.schedule != given.layout.schedule) +
           0.25 * apart(other.layout.virtual_stages, given.layout.virtual_stages);
  };
  bool found = false;
  double nearest = 0;
  Candidate best;
  ForEachCandidate(run_file, machine, [&](const Candidate& candidate) {
    const double away = distance(candidate);
    if (found && away >= nearest) return;
    if (!CheckMemory(run_file, candidate, machine).ok()) return;
    found = true;
    nearest = away;
    best = candidate;
  });
  return found ? absl::StrCat("; the nearest that fits: ", TextOf(best))
               : "; no layout on these machines fits";
}

}  // namespace

Candidate GivenIn(const RunFile& run_file) {
  return {LayoutOf(run_file), run_file.train.micro_batch_size};
}

absl::StatusOr<Choice> CheckGiven(const RunFile& run_file, const Machine& machine) {
  const Candidate given = GivenIn(run_file);
  RETURN_IF_ERROR(CheckLayout(run_file, given, machine));
  const absl::Status fits = CheckMemory(run_file, given, machine);
  if (!fits.ok()) {
    return absl::OutOfRangeError(absl::StrCat(TextOf(given), ": ", fits.message(),
                                              NearestThatFits(run_file, machine, given)));
  }
  Choice choice{given, {}, "given in the run file"};
  if (!machine.rates) return choice;
  choice.step = Predict(run_file, given, machine);
  absl::StrAppend(&choice.why, "; ", WhatItPays(choice.step));
  return choice;
}

absl::StatusOr<Choices> ChooseLayout(const RunFile& run_file, const Machine& machine) {
  Choices choices;
  std::vector<Estimate> estimates;
  double least_memory = 0;
  Candidate least;
  ForEachCandidate(run_file, machine, [&](const Candidate& candidate) {
    ++choices.tried;
    const double memory = FullestRank(run_file, candidate, machine);
    if (choices.tried == 1 || memory < least_memory) {
      least_memory = memory;
      least = candidate;
    }
    if (machine.memory_bytes > 0 && !(memory <= machine.memory_bytes)) return;
    const std::vector<StageTimes> times = TimesOfStages(run_file, candidate, machine);
    estimates.push_back({candidate, EstimateStepSeconds(run_file, candidate, times)});
  });
  if (choices.tried == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no layout fits ", machine.slots(),
        " slots: [train] global_batch_size = ", run_file.train.global_batch_size,
        " must be a multiple of the data-parallel ranks, slots / pipeline, and pipeline at most "
        "num_hidden_layers = ",
        run_file.model.num_hidden_layers));
  }
  choices.fitting = estimates.size();
  if (estimates.empty()) {
    return absl::OutOfRangeError(absl::StrCat("none of ", choices.tried,
                                              " layouts fits; the nearest, ", TextOf(least), ": ",
                                              CheckMemory(run_file, least, machine).message()));
  }
  std::stable_sort(estimates.begin(), estimates.end(),
                   [](const Estimate& a, const Estimate& b) { return a.seconds < b.seconds; });
  if (estimates.size() > kSimulated) estimates.resize(kSimulated);
  std::vector<Choice> simulated;
  for (const Estimate& estimate : estimates) {
    simulated.push_back({estimate.candidate, Predict(run_file, estimate.candidate, machine), ""});
  }
  std::stable_sort(simulated.begin(), simulated.end(), [](const Choice& a, const Choice& b) {
    return a.step.seconds < b.step.seconds;
  });
  for (Choice& choice : simulated) {
    const bool known = std::any_of(choices.best.begin(), choices.best.end(), [&](const Choice& of) {
      return IsVariantOf(choice.candidate.layout, of.candidate.layout);
    });
    if (known) continue;
    choice.why = WhatItPays(choice.step);
    choices.best.push_back(std::move(choice));
    if (choices.best.size() == kKept) break;
  }
  return choices;
}

}  // namespace paceline::planning
