#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/planning/cluster_file.h"
#include "common/run_file.h"
#include "common/status.h"
#include "launch/cli/calibration.h"
#include "launch/cli/plan_report.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string file;
  std::string cluster;
  std::vector<std::string> sets;
  bool choose = false;
  bool calibrate = false;
};

constexpr std::uint64_t kFailureSeed = 1;

// What is planned for, beside the run.
struct Target {
  planning::Machine machine;
  std::string name;
  std::optional<planning::ClusterFile> cluster;
  std::vector<std::string> assumptions;
};

absl::StatusOr<RunFile> LoadFor(const Options& options,
                                const std::optional<planning::ClusterFile>& cluster) {
  std::vector<Override> overrides;
  // The run is planned for all of the cluster; a --set, which comes after, says otherwise. Where
  // the layout is to be chosen, the file need not fit the cluster as it stands.
  if (cluster && !options.choose) {
    overrides.push_back({absl::StrCat("launch.nodes=", cluster->cluster.nodes), "."});
    overrides.push_back(
        {absl::StrCat("launch.slots_per_node=", cluster->cluster.slots_per_node), "."});
  }
  for (const std::string& set : options.sets) overrides.push_back({set, "."});
  return LoadRunFile(options.file, overrides);
}

std::vector<std::string> AssumptionsOf(const planning::ClusterFile& cluster) {
  const planning::ArithmeticSection& arithmetic = cluster.arithmetic;
  std::vector<std::string> assumptions = {absl::StrCat(
      "a worker that multiplies in ", arithmetic.matrix, " and attends in ", arithmetic.attention,
      arithmetic.recompute_cheap ? ", and makes norms and activations anew in backward" : "",
      "; this build's computes in float32 on CPUs")};
  if (cluster.exchange.nodes_per_token_max > 0) {
    assumptions.push_back(absl::StrCat("routing limited to ", cluster.exchange.nodes_per_token_max,
                                       " nodes a token"));
  }
  if (cluster.exchange.one_copy_a_node) {
    assumptions.push_back("a token crosses to a node once and is copied to its experts there");
  }
  assumptions.push_back("every expert gets its share of the tokens");
  return assumptions;
}

// Ranks of the run that compute at once on the cores that this process may use.
int RanksAtOnce(const RunFile& run_file) {
  cpu_set_t allowed;
  const std::int64_t cores =
      sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  return static_cast<int>(std::min(run_file.launch.nodes * run_file.launch.slots_per_node, cores));
}

absl::StatusOr<Target> TargetOf(const Options& options, const RunFile& run_file,
                                const std::optional<planning::ClusterFile>& cluster) {
  Target target;
  if (cluster) {
    target.machine = planning::MachineOf(*cluster, run_file);
    // A part of the cluster, where a part is asked for: by the run file, or, where the layout is to
    // be chosen, on the command line.
    const auto take = [&](const char* key, std::int64_t asked, std::int64_t& of_cluster) {
      const bool set = std::any_of(
          options.sets.begin(), options.sets.end(),
          [&](const std::string& given) { return given.starts_with(absl::StrCat(key, "=")); });
      if (!options.choose || set) of_cluster = std::min(of_cluster, asked);
    };
    take("launch.nodes", run_file.launch.nodes, target.machine.nodes);
    take("launch.slots_per_node", run_file.launch.slots_per_node, target.machine.slots_per_node);
    target.name = cluster->cluster.name;
    target.cluster = cluster;
    target.assumptions = AssumptionsOf(*cluster);
    return target;
  }
  target.machine = planning::CpuMachine(run_file);
  target.name = "this machine";
  if (options.calibrate) {
    std::fprintf(stderr, "measuring this machine...\n");
    ASSIGN_OR_RETURN(target.machine.rates,
                     Calibrate(CalibrationShapeFor(run_file), RanksAtOnce(run_file)));
    target.assumptions.push_back(
        "each rank has a core of its own, and its messages take that core's time");
  }
  return target;
}

// Young's, Daly's and the simulated interval, where failures are known.
std::optional<PlanGoodput> GoodputOf(const planning::ClusterFile& cluster, const Plan& plan) {
  const planning::ReliabilitySection& reliability = cluster.reliability;
  if (reliability.node_mtbf_hours <= 0) return std::nullopt;
  PlanGoodput goodput;
  const double ranks = plan.candidate.layout.world_size();
  const double nodes = std::max(1.0, ranks / static_cast<double>(plan.machine.slots_per_node));
  goodput.failures.mtbf_s = 3600 * reliability.node_mtbf_hours / nodes;
  goodput.failures.write_s = planning::CheckpointBytes(plan.run_file) /
                             (1e9 * reliability.checkpoint_gigabytes_per_second);
  // A checkpoint holds up training while each rank copies its share.
  goodput.failures.stall_s = planning::CheckpointBytes(plan.run_file) / ranks /
                             (1e9 * reliability.copy_gigabytes_per_second);
  goodput.failures.restart_s = reliability.restart_seconds;
  goodput.young_s = planning::YoungInterval(goodput.failures);
  goodput.daly_s = planning::DalyInterval(goodput.failures);
  goodput.best = planning::SimulatedBestInterval(goodput.failures, kFailureSeed);
  return goodput;
}

void FillTime(const Target& target, Plan& plan) {
  if (!plan.machine.rates) return;
  PlanTime time;
  time.step = planning::Predict(plan.run_file, plan.candidate, plan.machine, /*timeline=*/true);
  time.tokens_per_second = plan.tokens_per_step() / time.step.seconds;
  time.cost_per_million_tokens = plan.CostPerMillionTokens(time.step.seconds);
  plan.time = std::move(time);
  if (target.cluster) plan.goodput = GoodputOf(*target.cluster, plan);
}

absl::StatusOr<Plan> PlanOf(const Options& options, RunFile run_file, const Target& target) {
  Plan plan;
  plan.machine = target.machine;
  plan.machine_name = target.name;
  plan.assumptions = target.assumptions;
  plan.slot_hour = target.cluster ? target.cluster->price.slot_hour : run_file.rates.slot_hour;
  plan.currency = target.cluster ? target.cluster->price.currency : run_file.rates.currency;
  std::vector<planning::Choice> best;
  if (target.machine.rates) {
    absl::StatusOr<planning::Choices> choices = planning::ChooseLayout(run_file, target.machine);
    if (!choices.ok() && options.choose) return choices.status();
    if (choices.ok()) {
      best = std::move(choices->best);
      plan.tried = choices->tried;
      plan.fitting = choices->fitting;
    }
  }
  if (options.choose) {
    plan.candidate = best.front().candidate;
    plan.why = "chosen: " + best.front().why;
    plan.chosen = true;
  } else {
    ASSIGN_OR_RETURN(const planning::Choice given, planning::CheckGiven(run_file, target.machine));
    plan.candidate = given.candidate;
    plan.why = given.why;
  }
  const std::string chosen = planning::TextOf(plan.candidate);
  for (planning::Choice& choice : best) {
    if (planning::TextOf(choice.candidate) == chosen || plan.others.size() == 2) continue;
    plan.others.push_back(std::move(choice));
  }
  plan.stages = planning::MemoryOfStages(run_file, plan.candidate, plan.machine);
  plan.run_file = std::move(run_file);
  FillTime(target, plan);
  return plan;
}

absl::StatusOr<ExitCode> RunPlan(const Options& options) {
  if (options.calibrate && !options.cluster.empty()) {
    return absl::InvalidArgumentError(
        "--calibrate measures this machine, --cluster describes another: give one of them");
  }
  if (options.choose && options.cluster.empty() && !options.calibrate) {
    return absl::InvalidArgumentError(
        "--choose compares predicted times: give --cluster FILE, or --calibrate to measure this "
        "machine");
  }
  std::optional<planning::ClusterFile> cluster;
  if (!options.cluster.empty()) {
    ASSIGN_OR_RETURN(cluster, planning::LoadClusterFile(options.cluster));
  }
  ASSIGN_OR_RETURN(RunFile run_file, LoadFor(options, cluster));
  ASSIGN_OR_RETURN(const Target target, TargetOf(options, run_file, cluster));
  ASSIGN_OR_RETURN(const Plan plan, PlanOf(options, std::move(run_file), target));
  if (options.json) {
    PrintJson(ToJson(plan));
  } else {
    PrintText(plan);
  }
  return ExitCode::kDone;
}

}  // namespace

void AddPlanVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "plan",
             .help = "Say what a run file would take: parameters, FLOPs, memory of a rank, and on "
                     "machines that are described or measured, time and cost",
             .examples = {"paceline plan launch/recipes/quickstart.toml",
                          "paceline plan my.toml --set train.micro_batch_size=4 -o json",
                          "paceline plan my.toml --cluster cluster.toml --choose"}},
            *options);
  verb.Argument("FILE", options->file, "Run file (TOML)", Verb::kRequired);
  verb.Text("--cluster", options->cluster, "FILE",
            "Cluster file (TOML): plan for the machines it describes");
  verb.Flag("--choose", options->choose, "Choose the layout, in place of the run file's");
  verb.Flag("--calibrate", options->calibrate,
            "Measure this machine for a few seconds, to predict the step on it");
  verb.Sets(options->sets, "section.key=value in place of the file's; may be repeated");
  verb.OutputForm();
  verb.Does([options] { return RunPlan(*options); });
}

}  // namespace paceline::cli
