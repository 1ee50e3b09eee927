#include "common/planning/simulation.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>

#include "common/check.h"

namespace paceline::planning {
namespace {

constexpr double kNotYet = -1;
// Draws of a step with uneven passes: of a short one kDrawsMax, of a long one as many as run
// kDrawnPasses passes in all, so that a search over layouts ends soon. kDrawsMin, whatever that
// takes: their mean is off by less than a fifth of what steps differ by.
constexpr std::size_t kDrawsMin = 32;
constexpr std::size_t kDrawsMax = 256;
constexpr std::size_t kDrawnPasses = 1 << 20;

class Simulation {
 public:
  // `draw`: none: every pass takes its median time.
  Simulation(const PipelineShape& shape, const std::vector<StageTimes>& stages, double overlap,
             std::optional<std::uint32_t> draw = std::nullopt)
      : shape_(shape), stages_(stages), overlap_(overlap) {
    PACELINE_CHECK(static_cast<int>(stages.size()) == shape.stages);
    const auto segments = static_cast<std::size_t>(shape.stages * shape.virtual_stages);
    const auto micro_batches = static_cast<std::size_t>(shape.micro_batches);
    forward_at_.assign(segments, std::vector<double>(micro_batches, kNotYet));
    backward_at_ = forward_at_;
    runs_.resize(stages.size());
    for (int stage = 0; stage < shape.stages; ++stage) {
      Run& run = runs_[static_cast<std::size_t>(stage)];
      run.actions = PipelineActions(shape, stage);
      run.passes_left.assign(static_cast<std::size_t>(shape.virtual_stages), shape.micro_batches);
      if (draw.has_value()) {
        run.random.emplace(*draw * runs_.size() + static_cast<std::size_t>(stage));
        run.slowness = SlownessOf(stages[static_cast<std::size_t>(stage)], *run.random);
      }
    }
  }

  StepSimulation Finish(bool with_timeline) {
    bool moved = true;
    while (moved) {
      moved = false;
      for (std::size_t stage = 0; stage < runs_.size(); ++stage) {
        while (RunNext(stage, with_timeline)) moved = true;
      }
    }
    for (const Run& run : runs_) PACELINE_CHECK(run.next == run.actions.size());
    return Account(with_timeline);
  }

 private:
  struct Run {
    std::vector<PipelineAction> actions;
    std::size_t next = 0;
    double now = 0;                // of the compute stream
    double reducing_to = 0;        // of the communication stream
    std::vector<int> passes_left;  // by segment: weight gradients of so many micro-batches
    StageParts parts;
    std::vector<TimedPass> timeline;
    std::optional<std::mt19937_64> random;  // none: passes are even
    double slowness = 1;                    // of all passes
  };

  // Of the slowest of a stage's copies.
  static double SlownessOf(const StageTimes& times, std::mt19937_64& random) {
    std::normal_distribution<double> normal;
    double slowest = normal(random);
    for (int copy = 1; copy < times.copies; ++copy) slowest = std::max(slowest, normal(random));
    return std::exp(times.spread.step * slowest);
  }

  // Runs the next pass of a stage, if what it needs has been sent.
  bool RunNext(std::size_t stage, bool with_timeline) {
    Run& run = runs_[stage];
    if (run.next == run.actions.size()) return false;
    const PipelineAction action = run.actions[run.next];
    const auto m = static_cast<std::size_t>(action.micro_batch);
    const auto own = static_cast<std::size_t>(action.segment);
    const std::size_t segment = own * runs_.size() + stage;
    double ready = 0;
    double receive = 0;  // what taking its message in costs a stage that computes meanwhile
    if (action.pass == Pass::kForward && segment > 0) {
      ready = forward_at_[segment - 1][m];
      receive = (1 - overlap_) * stages_[(stage + runs_.size() - 1) % runs_.size()].send_forward;
    }
    const bool takes_gradient =
        action.pass == Pass::kBackward || action.pass == Pass::kBackwardInput;
    if (takes_gradient && segment + 1 < backward_at_.size()) {
      ready = backward_at_[segment + 1][m];
      receive = (1 - overlap_) * stages_[(stage + 1) % runs_.size()].send_backward;
    }
    if (ready == kNotYet) return false;

    const StageTimes& times = stages_[stage];
    const PassSeconds& seconds = times.segments[own];
    run.parts.send += std::clamp(run.now + receive - ready, 0.0, receive);
    const double start = std::max(run.now + receive, ready);
    double compute = 0;
    double exchange = 0;
    if (action.pass == Pass::kForward) {
      compute = seconds.forward;
      exchange = seconds.exchange_forward;
    }
    if (takes_gradient) {
      compute = seconds.backward_input;
      exchange = seconds.exchange_backward;
    }
    if (action.pass == Pass::kBackward || action.pass == Pass::kBackwardWeights) {
      compute += seconds.backward_weights;
    }
    compute *= Unevenness(run, times);
    run.parts.compute += compute;
    run.parts.exchange += exchange;
    run.now = start + compute + exchange;
    if (with_timeline) run.timeline.push_back({action, start, run.now});
    if (action.pass == Pass::kForward && segment + 1 < forward_at_.size()) {
      forward_at_[segment][m] = run.now + times.send_forward;
      Hold(run, times.send_forward);
    }
    if (takes_gradient && segment > 0) {
      backward_at_[segment][m] = run.now + times.send_backward;
      Hold(run, times.send_backward);
    }
    const bool last_weights =
        (action.pass == Pass::kBackward || action.pass == Pass::kBackwardWeights) &&
        --run.passes_left[own] == 0;
    if (last_weights) Reduce(run, times, own, start, start + compute + exchange);
    ++run.next;
    return true;
  }

  static double Unevenness(Run& run, const StageTimes& times) {
    if (!run.random.has_value()) return 1;
    return run.slowness *
           std::exp(times.spread.pass * std::normal_distribution<double>()(*run.random));
  }

  void Hold(Run& run, double send) {
    run.parts.send += (1 - overlap_) * send;
    run.now += (1 - overlap_) * send;
  }

  // A segment's last pass over its weights ran from `start` to `end`: buckets follow evenly.
  void Reduce(Run& run, const StageTimes& times, std::size_t segment, double start, double end) {
    const int buckets = std::max(1, times.reduction_buckets[segment]);
    const double each = times.reduction[segment] / buckets;
    // Where communication takes the compute's time, nothing runs beside the pass.
    const double begin = end - overlap_ * (end - start);
    for (int i = 0; i < buckets; ++i) {
      const double ready = begin + (end - begin) * (i + 1) / buckets;
      run.reducing_to = std::max(run.reducing_to, ready) + each;
    }
  }

  StepSimulation Account(bool with_timeline) {
    // The gradient's norm needs every stage's gradients.
    double reduced = 0;
    double updating = 0;
    for (std::size_t stage = 0; stage < runs_.size(); ++stage) {
      reduced = std::max({reduced, runs_[stage].now, runs_[stage].reducing_to});
      updating = std::max(updating, Update(stages_[stage]));
    }
    StepSimulation result;
    result.seconds = reduced + updating;
    for (std::size_t stage = 0; stage < runs_.size(); ++stage) {
      Run& run = runs_[stage];
      run.parts.gradients = std::max(0.0, run.reducing_to - run.now);
      run.parts.optimizer = Update(stages_[stage]);
      run.parts.bubble = result.seconds - run.parts.total();
      result.stages.push_back(run.parts);
      if (with_timeline) result.timeline.push_back(std::move(run.timeline));
    }
    return result;
  }

  // The gather follows the optimizer bucket by bucket.
  double Update(const StageTimes& times) const {
    int buckets = 0;
    for (const int count : times.reduction_buckets) buckets += std::max(1, count);
    const double longer = std::max(times.optimizer, times.gather);
    const double shorter = std::min(times.optimizer, times.gather);
    return longer + shorter * (overlap_ / buckets + (1 - overlap_));
  }

  const PipelineShape& shape_;
  const std::vector<StageTimes>& stages_;
  const double overlap_;
  std::vector<Run> runs_;
  // When the value of (segment, micro-batch) has reached the next stage.
  std::vector<std::vector<double>> forward_at_;
  std::vector<std::vector<double>> backward_at_;
};

}  // namespace

int DrawsOf(const PipelineShape& shape) {
  // Stages have equally many.
  const std::size_t passes =
      PipelineActions(shape, 0).size() * static_cast<std::size_t>(shape.stages);
  return static_cast<int>(std::clamp(kDrawnPasses / passes, kDrawsMin, kDrawsMax));
}

StepSimulation SimulateStep(const PipelineShape& shape, const std::vector<StageTimes>& stages,
                            double overlap, bool with_timeline, std::optional<int> draws) {
  StepSimulation step = Simulation(shape, stages, overlap).Finish(with_timeline);
  const bool even = std::all_of(stages.begin(), stages.end(), [](const StageTimes& times) {
    return times.spread.pass == 0 && times.spread.step == 0;
  });
  if (even) return step;
  step.seconds = 0;
  step.stages.assign(stages.size(), {});
  const auto count = static_cast<std::uint32_t>(draws.value_or(DrawsOf(shape)));
  for (std::uint32_t draw = 0; draw < count; ++draw) {
    const StepSimulation drawn = Simulation(shape, stages, overlap, draw).Finish(false);
    step.seconds += drawn.seconds / count;
    for (std::size_t stage = 0; stage < stages.size(); ++stage) {
      step.stages[stage].Add(drawn.stages[stage], 1.0 / count);
    }
  }
  return step;
}

void StageParts::Add(const StageParts& other, double share) {
  for (double StageParts::*part :
       {&StageParts::compute, &StageParts::exchange, &StageParts::send, &StageParts::bubble,
        &StageParts::gradients, &StageParts::optimizer}) {
    this->*part += share * other.*part;
  }
}

StageParts MeanOf(const std::vector<StageParts>& stages) {
  StageParts mean;
  for (const StageParts& parts : stages) mean.Add(parts, 1.0 / static_cast<double>(stages.size()));
  return mean;
}

std::string TimelinePicture(const StepSimulation& simulation, int columns) {
  double shortest = std::numeric_limits<double>::infinity();
  double end = 0;
  for (const std::vector<TimedPass>& passes : simulation.timeline) {
    for (const TimedPass& pass : passes) {
      shortest = std::min(shortest, pass.end - pass.start);
      end = std::max(end, pass.end);
    }
  }
  // The shortest pass is one column wide at least.
  if (!(shortest > 0) || !(end / shortest <= columns)) return "";
  const double scale = std::min(static_cast<double>(columns), 2 * end / shortest) / end;
  std::string picture;
  for (const std::vector<TimedPass>& passes : simulation.timeline) {
    std::string line(static_cast<std::size_t>(std::ceil(end * scale)), '.');
    for (const TimedPass& pass : passes) {
      const int m = pass.action.micro_batch;
      char mark = static_cast<char>('0' + m % 10);
      if (pass.action.pass != Pass::kForward) mark = static_cast<char>('a' + m % 22);
      if (pass.action.pass == Pass::kBackwardWeights) mark = 'w';
      const auto first = static_cast<std::size_t>(std::lround(pass.start * scale));
      const auto last = static_cast<std::size_t>(std::lround(pass.end * scale));
      for (std::size_t i = first; i < std::min(last, line.size()); ++i) line[i] = mark;
    }
    picture += line + "\n";
  }
  return picture;
}

}  // namespace paceline::planning
