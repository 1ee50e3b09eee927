#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "common/model_shape.h"
#include "common/run_file.h"
#include "common/status.h"
#include "launch/cli/format.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"
#include "worker/kernels/stream.h"
#include "worker/model/transformer.h"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string file;
  std::vector<std::string> sets;
};

// Bytes that one rank needs. Every rank holds the whole model: data parallelism alone is built.
struct RankMemory {
  double weights = 0;
  double gradients = 0;
  double accumulators = 0;  // float64 sums, with reduction = "exact"
  double moments = 0;
  double activations = 0;  // and the arena's scratch
  double checkpoint_copy = 0;

  double total() const {
    return weights + gradients + accumulators + moments + activations + checkpoint_copy;
  }
};

RankMemory MemoryOf(const RunFile& run_file, double parameters) {
  Stream compute(Stream::Mode::kInline, "compute");
  // The arena is measured, not estimated: the same code lays it out for training.
  const Transformer measured(run_file.model,
                             {.micro_batch_size = run_file.train.micro_batch_size,
                              .sequence_length = run_file.train.sequence_length,
                              .training = true},
                             compute);
  RankMemory memory;
  memory.weights = 4 * parameters;
  memory.gradients = 4 * parameters;
  memory.activations = std::max(
      0.0, static_cast<double>(measured.arena_bytes()) - memory.weights - memory.gradients);
  memory.accumulators = run_file.train.reduction == "exact" ? 8 * parameters : 0;
  memory.moments = 8 * parameters;
  memory.checkpoint_copy = 12 * parameters / static_cast<double>(run_file.DataParallel());
  return memory;
}

struct Plan {
  ModelSize size;
  double flops_per_token = 0;
  RankMemory memory;
  double tokens_per_step = 0;
  double checkpoint_bytes = 0;
};

Plan PlanOf(const RunFile& run_file) {
  Plan plan;
  plan.size = SizeOfModel(run_file.model);
  plan.flops_per_token = TrainingFlopsPerToken(run_file.model, run_file.train.sequence_length);
  const auto parameters = static_cast<double>(plan.size.parameters);
  plan.memory = MemoryOf(run_file, parameters);
  plan.tokens_per_step =
      static_cast<double>(run_file.train.global_batch_size * run_file.train.sequence_length);
  plan.checkpoint_bytes = 12 * parameters;  // weights and two moments, float32
  return plan;
}

nlohmann::json ToJson(const RunFile& run_file, const Plan& plan) {
  nlohmann::json placement = nlohmann::json::array();
  for (std::int64_t rank = 0; rank < run_file.WorldSize(); ++rank) {
    placement.push_back({{"rank", rank},
                         {"node", "node-" + std::to_string(rank / run_file.launch.slots_per_node)},
                         {"slot", rank % run_file.launch.slots_per_node}});
  }
  return {{"name", run_file.run.name},
          {"parameters", plan.size.parameters},
          {"active_parameters", plan.size.active_parameters},
          {"flops_per_token", plan.flops_per_token},
          {"layout",
           {{"pipeline", run_file.layout.pipeline},
            {"data", run_file.DataParallel()},
            {"expert", run_file.layout.expert}}},
          {"world_size", run_file.WorldSize()},
          {"micro_batches_per_rank", run_file.MicroBatchesPerRank()},
          {"placement", std::move(placement)},
          {"memory_per_rank",
           {{"weights", plan.memory.weights},
            {"gradients", plan.memory.gradients},
            {"accumulators", plan.memory.accumulators},
            {"moments", plan.memory.moments},
            {"activations", plan.memory.activations},
            {"checkpoint_copy", plan.memory.checkpoint_copy},
            {"total", plan.memory.total()}}},
          {"steps", run_file.train.steps},
          {"tokens_per_step", plan.tokens_per_step},
          {"tokens", plan.tokens_per_step * static_cast<double>(run_file.train.steps)},
          {"flops",
           plan.flops_per_token * plan.tokens_per_step * static_cast<double>(run_file.train.steps)},
          {"checkpoint_bytes", plan.checkpoint_bytes}};
}

void Print(const char* name, const std::string& value) {
  std::printf("%-18s%s\n", name, value.c_str());
}

void PrintText(const RunFile& run_file, const Plan& plan) {
  const auto count = [](auto value) { return FormatCount(static_cast<double>(value)); };
  const RankMemory& memory = plan.memory;
  const double tokens = plan.tokens_per_step * static_cast<double>(run_file.train.steps);
  Print("run", run_file.run.name);
  Print("parameters", count(plan.size.parameters) + ", of which a token passes " +
                          count(plan.size.active_parameters));
  Print("FLOPs a token", count(plan.flops_per_token) + " (forward and backward)");
  Print("layout", "pipeline " + std::to_string(run_file.layout.pipeline) + " x data " +
                      std::to_string(run_file.DataParallel()) + ", expert " +
                      std::to_string(run_file.layout.expert));
  Print("placement", FormatNumberOf(run_file.WorldSize(), "rank") + " on " +
                         FormatNumberOf(run_file.launch.nodes, "node") + " of " +
                         FormatNumberOf(run_file.launch.slots_per_node, "slot") + ", in order");
  Print("batch",
        FormatNumberOf(run_file.train.global_batch_size, "sequence") + " of " +
            FormatNumberOf(run_file.train.sequence_length, "token") + "; " +
            std::to_string(run_file.MicroBatchesPerRank()) +
            (run_file.MicroBatchesPerRank() == 1 ? " micro-batch of " : " micro-batches of ") +
            std::to_string(run_file.train.micro_batch_size) + " on each rank");
  Print("steps", std::to_string(run_file.train.steps) + ", " + count(tokens) + " tokens, " +
                     count(plan.flops_per_token * tokens) + " FLOPs");
  Print("memory a rank", FormatBytes(memory.total()) + ":");
  Print("  weights", FormatBytes(memory.weights));
  Print("  gradients",
        FormatBytes(memory.gradients) +
            (memory.accumulators > 0 ? " and " + FormatBytes(memory.accumulators) + " of exact sums"
                                     : ""));
  Print("  moments", FormatBytes(memory.moments));
  Print("  activations", FormatBytes(memory.activations));
  Print("  checkpoint copy", FormatBytes(memory.checkpoint_copy));
  Print("checkpoint", FormatBytes(plan.checkpoint_bytes));
}

absl::StatusOr<ExitCode> RunPlan(const Options& options) {
  std::vector<Override> overrides;
  for (const std::string& set : options.sets) overrides.push_back({set, "."});
  ASSIGN_OR_RETURN(const RunFile run_file, LoadRunFile(options.file, overrides));
  const Plan plan = PlanOf(run_file);
  if (options.json) {
    PrintJson(ToJson(run_file, plan));
  } else {
    PrintText(run_file, plan);
  }
  return ExitCode::kDone;
}

}  // namespace

void AddPlanVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "plan",
             .help = "Say what a run file would take: parameters, FLOPs, memory of a rank, "
                     "placement",
             .examples = {"paceline plan launch/recipes/quickstart.toml",
                          "paceline plan my.toml --set train.micro_batch_size=4 -o json"}},
            *options);
  verb.Argument("FILE", options->file, "Run file (TOML)", Verb::kRequired);
  verb.Sets(options->sets, "section.key=value in place of the file's; may be repeated");
  verb.OutputForm();
  verb.Does([options] { return RunPlan(*options); });
}

}  // namespace paceline::cli
