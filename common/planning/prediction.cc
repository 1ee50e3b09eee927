#include "common/planning/prediction.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace paceline::planning {
namespace {

// A checkpoint holds a parameter and its two moments in float32.
constexpr double kCheckpointBytes = 12;
// So many times its segments' micro-batches fill a pipeline for sure.
constexpr int kFilledRounds = 8;

int AsInt(std::int64_t value) { return static_cast<int>(value); }

std::vector<LayerRange> SplitOf(const RunFile& run_file, const ParallelLayout& layout) {
  return SplitLayers(run_file.model, run_file.train.sequence_length,
                     layout.pipeline * layout.virtual_stages);
}

std::vector<LayerRange> SegmentsOf(const std::vector<LayerRange>& ranges,
                                   const ParallelLayout& layout, int stage) {
  std::vector<LayerRange> segments;
  for (int i = 0; i < layout.virtual_stages; ++i) {
    segments.push_back(ranges[static_cast<std::size_t>(i * layout.pipeline + stage)]);
  }
  return segments;
}

MicroBatchShape BatchOf(const RunFile& run_file, const Candidate& candidate) {
  return {candidate.micro_batch_size, run_file.train.sequence_length};
}

PipelineShape ShapeOf(const RunFile& run_file, const Candidate& candidate) {
  return {.schedule = candidate.layout.schedule,
          .stages = candidate.layout.pipeline,
          .virtual_stages = candidate.layout.virtual_stages,
          .micro_batches = AsInt(MicroBatches(run_file, candidate))};
}

// The share of a group of `ranks` that a ring moves past each of them.
double RingShare(int ranks) { return (ranks - 1.0) / ranks; }

// What the ranks of one stage share with each other, over the slowest link among them.
struct Sharing {
  LinkRate reduction;
  LinkRate gather;
  double reduce_bytes = 0;  // of a parameter
  double spread_bytes = 0;  // back to every rank: gradients, or with ZeRO-1 nothing

  double ReductionSeconds(double parameters, int ranks) const {
    if (ranks == 1 || parameters == 0) return 0;
    return reduction.Seconds(parameters * RingShare(ranks) * (reduce_bytes + spread_bytes));
  }
};

// Whether the ranks of `stage` lie in one node: they ascend with their data index, so its first and
// last decide.
bool StageIsInside(const ParallelLayout& layout, int stage, std::int64_t slots_per_node) {
  return RankAt(layout, stage, 0) / slots_per_node ==
         RankAt(layout, stage, layout.data - 1) / slots_per_node;
}

// One link for both groups of a stage. Its expert-data groups lie side by side in its data group:
// inside one node where that does; where it does not, one of them crosses as well, and all wait for
// that one. (Where they are single ranks, they share nothing.)
Sharing SharingOf(const ParallelLayout& layout, const Machine& machine, int stage) {
  const CostRates& rates = *machine.rates;
  const KeptBytes& kept = machine.kept;
  Sharing sharing;
  const bool inside = StageIsInside(layout, stage, machine.slots_per_node);
  sharing.reduction = inside ? rates.reduction_inside_node : rates.reduction_between_nodes;
  sharing.gather = inside ? rates.inside_node : rates.between_nodes;
  sharing.reduce_bytes = kept.exact_sum > 0 ? kept.exact_sum : kept.gradient;
  sharing.spread_bytes = layout.shard_optimizer ? 0 : kept.gradient;
  return sharing;
}

// Parameters that this rank updates.
double OwnedParameters(const ParameterCounts& counts, const ParallelLayout& layout) {
  if (!layout.shard_optimizer) return counts.replicated + counts.routed;
  return counts.replicated / layout.data + counts.routed / layout.expert_data();
}

// Whether the first rank of `stage` and that of the next lie in one node.
bool NextStageIsInside(const ParallelLayout& layout, int stage, std::int64_t slots_per_node) {
  const int next = (stage + 1) % layout.pipeline;
  return RankAt(layout, stage, 0) / slots_per_node == RankAt(layout, next, 0) / slots_per_node;
}

// `ranges`: SplitOf the candidate, which takes long to tell for each stage anew.
RankMemory MemoryOfStage(const RunFile& run_file, const Candidate& candidate,
                         const Machine& machine, const std::vector<LayerRange>& ranges, int stage) {
  const ParallelLayout& layout = candidate.layout;
  const KeptBytes& kept = machine.kept;
  const MicroBatchShape batch = BatchOf(run_file, candidate);
  RankMemory memory;
  // Of a list that repeats itself, its beginning has the most in flight: by test, of any schedule.
  PipelineShape shape = ShapeOf(run_file, candidate);
  const int enough = 4 * shape.stages;
  shape.micro_batches = std::min(shape.micro_batches, enough);
  memory.slots = ActivationSlots(PipelineActions(shape, stage));
  ParameterCounts counts;
  for (const LayerRange& range : SegmentsOf(ranges, layout, stage)) {
    counts += ParametersOf(run_file.model, range, layout.expert);
    double slot = SavedBytes(run_file.model, range, batch, layout.expert, kept);
    if (layout.schedule == "zero-bubble") {
      slot += BetweenBytes(run_file.model, range, batch, layout.expert, kept);
    }
    memory.activations += memory.slots * slot;
    if (range.first > 0) {  // the next input may arrive while all slots are taken
      memory.activations +=
          batch.tokens() * static_cast<double>(run_file.model.hidden_size) * kept.activation;
    }
    memory.scratch =
        std::max(memory.scratch, ScratchBytes(run_file.model, range, batch, layout.expert, kept));
  }
  const double parameters = counts.replicated + counts.routed;
  memory.weights = kept.weight * parameters;
  memory.gradients = kept.gradient * parameters;
  memory.accumulators = kept.exact_sum * parameters;
  memory.moments = kept.moments * OwnedParameters(counts, layout);
  if (kept.checkpoint_copy) {
    memory.checkpoint_copy =
        kCheckpointBytes * (counts.replicated / layout.data + counts.routed / layout.expert_data());
  }
  return memory;
}

std::string GibibytesText(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", bytes / (1024.0 * 1024.0 * 1024.0));
  return text;
}

}  // namespace

std::string TextOf(const Candidate& candidate) {
  const ParallelLayout& layout = candidate.layout;
  std::string text = absl::StrCat("pipeline ", layout.pipeline);
  if (layout.pipeline > 1) {
    absl::StrAppend(&text, " (", layout.schedule,
                    layout.virtual_stages > 1 ? absl::StrCat(" x ", layout.virtual_stages) : "",
                    ")");
  }
  absl::StrAppend(&text, " x data ", layout.data, ", expert ", layout.expert, ", zero ",
                  layout.shard_optimizer ? 1 : 0, ", micro-batch ", candidate.micro_batch_size);
  return text;
}

std::int64_t MicroBatches(const RunFile& run_file, const Candidate& candidate) {
  return run_file.train.global_batch_size / (candidate.micro_batch_size * candidate.layout.data);
}

double CheckpointBytes(const RunFile& run_file) {
  return kCheckpointBytes * static_cast<double>(SizeOfModel(run_file.model).parameters);
}

RankMemory MemoryOf(const RunFile& run_file, const Candidate& candidate, const Machine& machine,
                    int stage) {
  return MemoryOfStage(run_file, candidate, machine, SplitOf(run_file, candidate.layout), stage);
}

std::vector<RankMemory> MemoryOfStages(const RunFile& run_file, const Candidate& candidate,
                                       const Machine& machine) {
  const std::vector<LayerRange> ranges = SplitOf(run_file, candidate.layout);
  std::vector<RankMemory> stages;
  for (int stage = 0; stage < candidate.layout.pipeline; ++stage) {
    stages.push_back(MemoryOfStage(run_file, candidate, machine, ranges, stage));
  }
  return stages;
}

std::size_t FullestOf(const std::vector<RankMemory>& stages) {
  std::size_t fullest = 0;
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    const double total = stages[stage].total();
    if (std::isnan(total)) return stage;
    if (total > stages[fullest].total()) fullest = stage;
  }
  return fullest;
}

std::vector<StageTimes> TimesOfStages(const RunFile& run_file, const Candidate& candidate,
                                      const Machine& machine) {
  const ParallelLayout& layout = candidate.layout;
  const ModelSection& model = run_file.model;
  const CostRates& rates = *machine.rates;
  const KeptBytes& kept = machine.kept;
  const MicroBatchShape batch = BatchOf(run_file, candidate);
  const std::vector<LayerRange> ranges = SplitOf(run_file, layout);
  // Layers of a kind are alike.
  const bool split = layout.schedule == "zero-bubble";
  const PassSeconds dense = SecondsOfLayer(model, 0, batch, layout.expert, machine, split);
  const PassSeconds last =
      SecondsOfLayer(model, model.num_hidden_layers - 1, batch, layout.expert, machine, split);
  const double message = batch.tokens() * static_cast<double>(model.hidden_size) * kept.activation;
  std::vector<StageTimes> stages;
  for (int stage = 0; stage < layout.pipeline; ++stage) {
    const Sharing sharing = SharingOf(layout, machine, stage);
    StageTimes times;
    double owned = 0;
    for (const LayerRange& range : SegmentsOf(ranges, layout, stage)) {
      PassSeconds seconds = SecondsOfEnds(model, range, batch, machine);
      for (std::int64_t layer = range.first; layer < range.end; ++layer) {
        seconds += model.IsSparse(layer) == model.IsSparse(0) ? dense : last;
      }
      times.segments.push_back(seconds);
      const ParameterCounts counts = ParametersOf(model, range, layout.expert);
      times.reduction.push_back(sharing.ReductionSeconds(counts.replicated, layout.data) +
                                sharing.ReductionSeconds(counts.routed, layout.expert_data()));
      times.reduction_buckets.push_back(AsInt(range.layers()));
      owned += OwnedParameters(counts, layout);
      if (!layout.shard_optimizer) continue;
      const double bytes = kept.weight * (counts.replicated * RingShare(layout.data) +
                                          counts.routed * RingShare(layout.expert_data()));
      if (bytes > 0) times.gather += sharing.gather.Seconds(bytes);
    }
    // Weights and moments are read and written, gradients read twice (for their norm).
    times.optimizer =
        owned * (2 * kept.weight + 2 * kept.moments + 2 * kept.gradient) / rates.optimizer_bytes;
    const auto send = [&](int to) {
      return (NextStageIsInside(layout, to, machine.slots_per_node) ? rates.inside_node
                                                                    : rates.between_nodes)
          .Seconds(message);
    };
    if (layout.pipeline > 1) {
      times.send_forward = send(stage);
      times.send_backward = send((stage + layout.pipeline - 1) % layout.pipeline);
    }
    times.spread = rates.spread;
    times.copies = layout.data;
    stages.push_back(std::move(times));
  }
  return stages;
}

StepSimulation Predict(const RunFile& run_file, const Candidate& candidate, const Machine& machine,
                       bool with_timeline) {
  PipelineShape shape = ShapeOf(run_file, candidate);
  const std::vector<StageTimes> times = TimesOfStages(run_file, candidate, machine);
  const double overlap = machine.rates->overlap;
  const int filled = kFilledRounds * shape.stages * shape.virtual_stages;
  if (shape.micro_batches <= 2 * filled) {
    return SimulateStep(shape, times, overlap, with_timeline);
  }
  // A pipeline that has filled repeats itself: what one stretch adds, the next one adds again.
  const double wanted = shape.micro_batches;
  shape.micro_batches = 2 * filled;
  // Equal draws: otherwise what they differ by would count as the second stretch's time.
  const int draws = DrawsOf(shape);
  const StepSimulation twice = SimulateStep(shape, times, overlap, /*with_timeline=*/false, draws);
  shape.micro_batches = filled;
  const StepSimulation once = SimulateStep(shape, times, overlap, /*with_timeline=*/false, draws);
  const double stretches = (wanted - filled) / filled;
  const auto extend = [stretches](double from, double to) {
    return from + stretches * (to - from);
  };
  StepSimulation step;
  step.seconds = extend(once.seconds, twice.seconds);
  for (std::size_t stage = 0; stage < once.stages.size(); ++stage) {
    StageParts& parts = step.stages.emplace_back(once.stages[stage]);
    parts.Add(twice.stages[stage], stretches);
    parts.Add(once.stages[stage], -stretches);
  }
  return step;
}

double EstimateStepSeconds(const RunFile& run_file, const Candidate& candidate,
                           const std::vector<StageTimes>& stages) {
  const ParallelLayout& layout = candidate.layout;
  double slowest = 0;
  double bubble = 0;
  double update = 0;
  for (const StageTimes& times : stages) {
    double round = 0;
    double weights = 0;
    double reduction = 0;
    for (std::size_t i = 0; i < times.segments.size(); ++i) {
      round += times.segments[i].total();
      weights += times.segments[i].backward_weights;
      reduction += times.reduction[i] / std::max(1, times.reduction_buckets[i]);
    }
    slowest = std::max(slowest, round);
    double wait = round / layout.virtual_stages;
    if (layout.schedule == "zero-bubble") wait = std::max(0.0, round - 2 * weights);
    bubble = std::max(bubble, wait + times.send_forward + times.send_backward);
    update = std::max(update, reduction + std::max(times.optimizer, times.gather));
  }
  return slowest * static_cast<double>(MicroBatches(run_file, candidate)) +
         bubble * (layout.pipeline - 1) + update;
}

absl::Status CheckLayout(const RunFile& run_file, const Candidate& candidate,
                         const Machine& machine) {
  const ParallelLayout& layout = candidate.layout;
  const ModelSection& model = run_file.model;
  const auto refuse = [](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  };
  if (layout.world_size() > machine.slots()) {
    return refuse("pipeline ", layout.pipeline, " x data ", layout.data, " needs ",
                  layout.world_size(), " slots; there are ", machine.slots());
  }
  if (layout.data % layout.expert != 0) {
    return refuse("expert = ", layout.expert, " must divide data = ", layout.data);
  }
  if (layout.expert > 1 && model.n_routed_experts % layout.expert != 0) {
    return refuse("expert = ", layout.expert,
                  " must divide n_routed_experts = ", model.n_routed_experts);
  }
  if (layout.pipeline * layout.virtual_stages > model.num_hidden_layers) {
    return refuse("pipeline x virtual_stages = ", layout.pipeline * layout.virtual_stages,
                  " is more than num_hidden_layers = ", model.num_hidden_layers);
  }
  if (layout.pipeline > 1 && model.tie_word_embeddings) {
    return refuse("pipeline must be 1 with tie_word_embeddings = true");
  }
  const std::int64_t unit = candidate.micro_batch_size * layout.data;
  if (run_file.train.global_batch_size % unit != 0) {
    return refuse("global_batch_size = ", run_file.train.global_batch_size,
                  " must be a multiple of micro_batch_size x data = ", unit);
  }
  return CheckPipelineShape(ShapeOf(run_file, candidate));
}

absl::Status CheckMemory(const RunFile& run_file, const Candidate& candidate,
                         const Machine& machine) {
  if (machine.memory_bytes <= 0) return absl::OkStatus();
  const std::vector<RankMemory> stages = MemoryOfStages(run_file, candidate, machine);
  const std::size_t fullest = FullestOf(stages);
  const RankMemory& memory = stages[fullest];
  if (memory.total() <= machine.memory_bytes) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat("a rank of stage ", fullest, " needs ", GibibytesText(memory.total()), " of ",
                   GibibytesText(machine.memory_bytes), ": weights ", GibibytesText(memory.weights),
                   ", gradients ", GibibytesText(memory.gradients + memory.accumulators),
                   ", moments ", GibibytesText(memory.moments), ", activations of ", memory.slots,
                   memory.slots == 1 ? " micro-batch " : " micro-batches ",
                   GibibytesText(memory.activations), ", scratch ", GibibytesText(memory.scratch)));
}

}  // namespace paceline::planning
