#include "launch/cli/plan_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "launch/cli/format.h"

namespace paceline::cli {
namespace {

using planning::RankMemory;
using planning::StageParts;

constexpr int kPictureColumns = 110;
constexpr int kPlacedMax = 16'384;

std::string Text(std::int64_t value) { return std::to_string(value); }

// "18.61 s": a prediction has no more digits.
std::string Seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g s", seconds);
  return text;
}

nlohmann::json MemoryJson(const RankMemory& memory) {
  return {{"weights", memory.weights},
          {"gradients", memory.gradients},
          {"accumulators", memory.accumulators},
          {"moments", memory.moments},
          {"activations", memory.activations},
          {"scratch", memory.scratch},
          {"checkpoint_copy", memory.checkpoint_copy},
          {"micro_batches_in_flight", memory.slots},
          {"total", memory.total()}};
}

nlohmann::json PartsJson(const StageParts& parts) {
  return {{"compute", parts.compute},     {"exchange", parts.exchange},
          {"send", parts.send},           {"bubble", parts.bubble},
          {"gradients", parts.gradients}, {"optimizer", parts.optimizer}};
}

nlohmann::json LayoutJson(const planning::Candidate& candidate) {
  const ParallelLayout& layout = candidate.layout;
  return {{"pipeline", layout.pipeline},
          {"schedule", layout.schedule},
          {"virtual_stages", layout.virtual_stages},
          {"data", layout.data},
          {"expert", layout.expert},
          {"expert_data", layout.expert_data()},
          {"zero", layout.shard_optimizer ? 1 : 0},
          {"micro_batch_size", candidate.micro_batch_size}};
}

// Of the first kPlacedMax ranks.
nlohmann::json PlacementJson(const Plan& plan) {
  nlohmann::json placement = nlohmann::json::array();
  for (int rank = 0; rank < std::min(plan.candidate.layout.world_size(), kPlacedMax); ++rank) {
    const RankCoordinates at = CoordinatesOf(plan.candidate.layout, rank);
    placement.push_back({{"rank", rank},
                         {"node", "node-" + Text(rank / plan.machine.slots_per_node)},
                         {"slot", rank % plan.machine.slots_per_node},
                         {"stage", at.stage},
                         {"data", at.data},
                         {"expert", at.expert}});
  }
  return placement;
}

nlohmann::json TimeJson(const PlanTime& time) {
  nlohmann::json stages = nlohmann::json::array();
  for (const StageParts& parts : time.step.stages) stages.push_back(PartsJson(parts));
  return {{"step_seconds", time.step.seconds},
          {"parts", PartsJson(planning::MeanOf(time.step.stages))},
          {"parts_by_stage", std::move(stages)},
          {"tokens_per_second", time.tokens_per_second}};
}

void Print(const std::string& name, const std::string& value) {
  std::printf("%-18s%s\n", name.c_str(), value.c_str());
}

void PrintMemory(const Plan& plan) {
  const RankMemory& memory = plan.fullest();
  const std::string of = plan.machine.memory_bytes > 0
                             ? " of " + FormatBytes(plan.machine.memory_bytes)
                             : std::string();
  Print("memory a rank", FormatBytes(memory.total()) + of +
                             (plan.stages.size() > 1 ? ", the fullest stage's:" : ":"));
  Print("  weights", FormatBytes(memory.weights));
  Print("  gradients",
        FormatBytes(memory.gradients) +
            (memory.accumulators > 0 ? " and " + FormatBytes(memory.accumulators) + " of exact sums"
                                     : ""));
  Print("  moments", FormatBytes(memory.moments));
  Print("  activations", FormatBytes(memory.activations) + " of " + Text(memory.slots) +
                             (memory.slots == 1 ? " micro-batch" : " micro-batches") +
                             " in flight, and " + FormatBytes(memory.scratch) + " of scratch");
  if (memory.checkpoint_copy > 0) Print("  checkpoint copy", FormatBytes(memory.checkpoint_copy));
  if (plan.stages.size() == 1) return;
  const auto line_of = [&](std::size_t stage) {
    const RankMemory& of_stage = plan.stages[stage];
    return FormatBytes(of_stage.total()) + ": weights " + FormatBytes(of_stage.weights) +
           ", gradients " + FormatBytes(of_stage.gradients + of_stage.accumulators) + ", moments " +
           FormatBytes(of_stage.moments) + ", activations " + FormatBytes(of_stage.activations) +
           " (" + Text(of_stage.slots) + " in flight)";
  };
  // Neighbours that are alike share a line.
  for (std::size_t stage = 0; stage < plan.stages.size();) {
    std::size_t end = stage + 1;
    while (end < plan.stages.size() && line_of(end) == line_of(stage)) ++end;
    const std::string name = "  stage " + std::to_string(stage);
    Print(end == stage + 1 ? name : name + "-" + std::to_string(end - 1), line_of(stage));
    stage = end;
  }
}

void PrintTime(const Plan& plan) {
  const PlanTime& time = *plan.time;
  const StageParts mean = planning::MeanOf(time.step.stages);
  Print("step", Seconds(time.step.seconds) + ", predicted; the mean over stages:");
  const auto part = [&](const char* name, double seconds, const char* what) {
    char text[96];
    std::snprintf(text, sizeof text, "%10.4g s  %5.1f %%  %s", seconds,
                  100 * seconds / time.step.seconds, what);
    if (seconds > 0) Print(name, text);
  };
  part("  compute", mean.compute, "forward and backward");
  part("  exchange", mean.exchange, "all-to-all that nothing hides");
  part("  sends", mean.send, "between stages, that hold one up");
  part("  bubble", mean.bubble, "waiting for other stages");
  part("  gradients", mean.gradients, "reduction after the last backward");
  part("  optimizer", mean.optimizer, "update, and weights gathered");
  Print("tokens/s", FormatCount(time.tokens_per_second));
  if (plan.slot_hour > 0) {
    Print("cost", FormatMoney(time.cost_per_million_tokens, plan.currency) +
                      " a million tokens; the run " +
                      FormatMoney(time.cost_per_million_tokens * plan.tokens_per_step() *
                                      static_cast<double>(plan.run_file.train.steps) / 1e6,
                                  plan.currency));
  }
}

void PrintGoodput(const PlanGoodput& goodput, double step_seconds) {
  char share[32];
  std::snprintf(share, sizeof share, "%.2f %%", 100 * goodput.best.goodput);
  Print("goodput", std::string(share) + " with a failure every " +
                       FormatDuration(goodput.failures.mtbf_s) + " (simulated)");
  Print("checkpoint every", FormatDuration(goodput.best.seconds) + ", about " +
                                FormatCount(std::max(1.0, goodput.best.seconds / step_seconds)) +
                                " steps; Young says " + FormatDuration(goodput.young_s) +
                                ", Daly " + FormatDuration(goodput.daly_s));
}

void PrintOthers(const Plan& plan) {
  for (const planning::Choice& other : plan.others) {
    const double ratio = other.step.seconds / plan.time->step.seconds;
    char relation[32];
    std::snprintf(relation, sizeof relation, "%.1f %% %s", 100 * std::abs(ratio - 1),
                  ratio < 1 ? "less" : "more");
    std::string line =
        planning::TextOf(other.candidate) + ": " + Seconds(other.step.seconds) + ", " + relation;
    if (plan.slot_hour > 0) {
      line += "; " + FormatMoney(plan.CostPerMillionTokens(other.step.seconds), plan.currency) +
              " a million tokens";
    }
    Print(ratio < 1 ? "better" : "next best", line);
    Print("", other.why);
  }
}

// How to run with a layout that was chosen here.
std::string SetsOf(const planning::Candidate& candidate, const planning::Machine& machine) {
  const ParallelLayout& layout = candidate.layout;
  const std::int64_t nodes =
      (layout.world_size() + machine.slots_per_node - 1) / machine.slots_per_node;
  const auto set = [](const char* key, const std::string& value) {
    return std::string(" --set ") + key + "=" + value;
  };
  return "--set layout.pipeline=" + Text(layout.pipeline) +
         set("layout.schedule", layout.schedule) +
         set("layout.virtual_stages", Text(layout.virtual_stages)) +
         set("layout.expert", Text(layout.expert)) +
         set("layout.zero", Text(layout.shard_optimizer ? 1 : 0)) +
         set("train.micro_batch_size", Text(candidate.micro_batch_size)) +
         set("launch.nodes", Text(nodes)) +
         set("launch.slots_per_node",
             Text(std::min<std::int64_t>(machine.slots_per_node, layout.world_size())));
}

}  // namespace

const RankMemory& Plan::fullest() const { return stages[planning::FullestOf(stages)]; }

double Plan::tokens_per_step() const {
  return static_cast<double>(run_file.train.global_batch_size * run_file.train.sequence_length);
}

double Plan::CostPerMillionTokens(double step_seconds) const {
  const double slot_hours = candidate.layout.world_size() * step_seconds / 3600;
  return slot_hours * slot_hour / tokens_per_step() * 1e6;
}

nlohmann::json ToJson(const Plan& plan) {
  const RunFile& run_file = plan.run_file;
  const ModelSize size = SizeOfModel(run_file.model);
  const double flops = TrainingFlopsPerToken(run_file.model, run_file.train.sequence_length);
  const double tokens = plan.tokens_per_step() * static_cast<double>(run_file.train.steps);
  nlohmann::json stages = nlohmann::json::array();
  for (const RankMemory& memory : plan.stages) stages.push_back(MemoryJson(memory));
  nlohmann::json json = {{"name", run_file.run.name},
                         {"machine", plan.machine_name},
                         {"parameters", size.parameters},
                         {"active_parameters", size.active_parameters},
                         {"flops_per_token", flops},
                         {"layout", LayoutJson(plan.candidate)},
                         {"why", plan.why},
                         {"world_size", plan.candidate.layout.world_size()},
                         {"micro_batches_per_rank", MicroBatches(run_file, plan.candidate)},
                         {"placement", PlacementJson(plan)},
                         {"memory_per_rank", MemoryJson(plan.fullest())},
                         {"memory_by_stage", std::move(stages)},
                         {"steps", run_file.train.steps},
                         {"tokens_per_step", plan.tokens_per_step()},
                         {"tokens", tokens},
                         {"flops", flops * tokens},
                         {"checkpoint_bytes", planning::CheckpointBytes(run_file)},
                         {"assumptions", plan.assumptions}};
  if (plan.time) {
    json["time"] = TimeJson(*plan.time);
    json["cost_per_million_tokens"] = plan.time->cost_per_million_tokens;
    json["currency"] = plan.currency;
    json["slot_hours"] = plan.candidate.layout.world_size() * plan.time->step.seconds *
                         static_cast<double>(run_file.train.steps) / 3600;
  }
  if (plan.goodput) {
    json["goodput"] = {{"share", plan.goodput->best.goodput},
                       {"mtbf_seconds", plan.goodput->failures.mtbf_s},
                       {"checkpoint_interval_seconds", plan.goodput->best.seconds},
                       {"young_seconds", plan.goodput->young_s},
                       {"daly_seconds", plan.goodput->daly_s}};
  }
  json["next_best"] = nlohmann::json::array();
  for (const planning::Choice& other : plan.others) {
    json["next_best"].push_back(
        {{"layout", LayoutJson(other.candidate)},
         {"step_seconds", other.step.seconds},
         {"cost_per_million_tokens", plan.CostPerMillionTokens(other.step.seconds)},
         {"why", other.why}});
  }
  return json;
}

void PrintText(const Plan& plan) {
  const RunFile& run_file = plan.run_file;
  const auto count = [](auto value) { return FormatCount(static_cast<double>(value)); };
  const ModelSize size = SizeOfModel(run_file.model);
  const double flops = TrainingFlopsPerToken(run_file.model, run_file.train.sequence_length);
  const double tokens = plan.tokens_per_step() * static_cast<double>(run_file.train.steps);
  Print("run", run_file.run.name + " on " + plan.machine_name);
  Print("parameters",
        count(size.parameters) + ", of which a token passes " + count(size.active_parameters));
  Print("FLOPs a token", count(flops) + " (forward and backward)");
  Print("layout", planning::TextOf(plan.candidate));
  Print("  why", plan.why);
  if (plan.chosen) Print("  to take it", SetsOf(plan.candidate, plan.machine));
  if (plan.tried > 0) {
    Print("", "of " + Text(static_cast<std::int64_t>(plan.tried)) + " layouts, " +
                  Text(static_cast<std::int64_t>(plan.fitting)) + " fit into memory");
  }
  Print("placement", FormatNumberOf(plan.candidate.layout.world_size(), "rank") + " on " +
                         FormatNumberOf(plan.machine.nodes, "node") + " of " +
                         FormatNumberOf(plan.machine.slots_per_node, "slot") +
                         ", in order: experts beside each other, then stages, then data");
  Print("batch", Text(run_file.train.global_batch_size) + " sequences of " +
                     Text(run_file.train.sequence_length) + " tokens; " +
                     Text(MicroBatches(run_file, plan.candidate)) +
                     (MicroBatches(run_file, plan.candidate) == 1 ? " micro-batch of "
                                                                  : " micro-batches of ") +
                     Text(plan.candidate.micro_batch_size) + " on each rank");
  Print("steps", Text(run_file.train.steps) + ", " + count(tokens) + " tokens, " +
                     count(flops * tokens) + " FLOPs");
  PrintMemory(plan);
  Print("checkpoint", FormatBytes(planning::CheckpointBytes(run_file)));
  if (plan.time) {
    PrintTime(plan);
    if (plan.goodput) PrintGoodput(*plan.goodput, plan.time->step.seconds);
    PrintOthers(plan);
    const std::string picture = planning::TimelinePicture(plan.time->step, kPictureColumns);
    if (plan.stages.size() > 1 && !picture.empty()) {
      std::printf(
          "schedule, a line for each stage (digits forward, letters backward, w weights, "
          ". waiting):\n%s",
          picture.c_str());
    }
  } else {
    Print("step", "not predicted: give --cluster, or --calibrate to measure this machine");
  }
  for (const std::string& assumption : plan.assumptions) Print("assumed", assumption);
}

}  // namespace paceline::cli
