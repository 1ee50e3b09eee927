// Layouts beside plain data parallelism, the same batches: two ranks of one compute thread, each
// with all its threads on a core of its own, over Gloo, the real trainer. Sparse models begin from
// a checkpoint in which balancing has begun to even out what their experts get. Pairs are
// interleaved; times are medians over the pairs, the ratio that of plain step time / layout step
// time (above 1: faster). Beside them what the planner predicts from rates measured on another
// shape before each pair. Waiting is the mean over the pairs: it depends on how far apart the
// cores' speeds are, which here is far or near by turns.
//
// usage: layout_bench [--pairs N] [--steps N] [--only TEXT] [--json]
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/parallel_layout.h"
#include "common/planning/prediction.h"
#include "launch/cli/calibration.h"
#include "tests/support/in_process_ranks.h"
#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

constexpr int kRanks = 2;

struct Variant {
  const char* name;
  LayoutSection layout;
  bool dense;
  std::int64_t micro_batch_size = 2;
};

const std::vector<Variant> kVariants = {
    {"data 2, dense", {}, true},
    {"data 2, sparse", {}, false},
    {"zero, dense", {.zero = 1}, true},
    {"zero, sparse", {.zero = 1}, false},
    {"expert 2", {.expert = 2}, false},
    {"expert 2, micro-batch 8", {.expert = 2}, false, 8},
    {"expert 2, zero", {.expert = 2, .zero = 1}, false},
    {"pipeline 2, 1f1b", {.pipeline = 2}, false},
    {"pipeline 2, interleaved",
     {.pipeline = 2, .schedule = "interleaved", .virtual_stages = 2},
     false},
    {"pipeline 2, zero-bubble", {.pipeline = 2, .schedule = "zero-bubble"}, false},
};

// The quickstart's model and batch.
RunFile RunOf(const std::string& folder, std::int64_t steps, const Variant& variant) {
  RunFile run = TinyRun(folder, 400'000);
  run.model = {.vocab_size = 256,
               .hidden_size = 128,
               .num_hidden_layers = 4,
               .num_attention_heads = 4,
               .num_key_value_heads = 2,
               .head_dim = 32,
               .intermediate_size = 384,
               .n_routed_experts = variant.dense ? 0 : 8,
               .n_shared_experts = 1,
               .num_experts_per_tok = 2,
               .moe_intermediate_size = 96,
               .first_k_dense_replace = 1,
               .scoring_func = "sigmoid"};
  run.data.valid.clear();
  run.train.sequence_length = 256;
  run.train.global_batch_size = 16;
  run.train.micro_batch_size = variant.micro_batch_size;
  run.train.steps = steps;
  run.launch.nodes = 1;
  run.launch.slots_per_node = kRanks;
  run.layout = variant.layout;
  return run;
}

// Steps of balancing before the first pair.
constexpr std::int64_t kBalancedSteps = 200;

struct Start {
  std::string checkpoint;  // "": the beginning
  std::int64_t step = 0;
};

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

struct Measured {
  double step_seconds = 0;  // median
  double waiting = 0;       // for other stages, share of the time in steps, the ranks' mean
};

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "layout_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

std::vector<RankOutcome> Outcomes(RunFile run, const Start& start) {
  run.train.steps += start.step;
  std::vector<RankOutcome> outcomes = TrainInProcess(
      run, kRanks, {.checkpoint = start.checkpoint, .start_step = start.step, .pin = true});
  for (const RankOutcome& outcome : outcomes) {
    if (!outcome.status.ok()) Fail(outcome.status);
  }
  return outcomes;
}

Measured Train(const RunFile& run, const Start& start) {
  std::vector<double> seconds;
  Measured measured;
  for (const RankOutcome& outcome : Outcomes(run, start)) {
    for (const v1::WorkerMessage& message : outcome.messages) {
      if (message.has_step()) seconds.push_back(message.step().step_seconds());
    }
    measured.waiting +=
        outcome.progress.pipeline_wait_seconds() / outcome.progress.step_seconds() / kRanks;
  }
  seconds.erase(seconds.begin(), seconds.begin() + 2);  // memory is touched for the first time
  measured.step_seconds = Median(seconds);
  return measured;
}

Start BalancedStart(const std::string& folder) {
  const RunFile run = RunOf(folder, kBalancedSteps, {.layout = {}, .dense = false});
  return {CommitCheckpoint(run, Outcomes(run, {}), kBalancedSteps), kBalancedSteps};
}

planning::CostRates MeasureRates(const RunFile& run) {
  absl::StatusOr<planning::CostRates> rates =
      cli::Calibrate(cli::CalibrationShapeFor(run), kRanks, PinToCore);
  if (!rates.ok()) Fail(rates.status());
  return *std::move(rates);
}

planning::StepSimulation PredictionOf(const RunFile& run, const planning::CostRates& rates) {
  planning::Machine machine = planning::CpuMachine(run);
  machine.rates = rates;
  return planning::Predict(run, {LayoutOf(run), run.train.micro_batch_size}, machine);
}

// The share of the step that stages wait.
double BubbleOf(const planning::StepSimulation& step) {
  return std::max(0.0, planning::MeanOf(step.stages).bubble / step.seconds);
}

// `only`: the variants in whose names it stands.
int Run(int pairs, std::int64_t steps, std::string_view only, bool json) {
  const TempFolder folder;
  const TempFolder balanced_folder;
  Start balanced;
  if (!json) {
    std::printf("%-26s %7s %9s %13s %7s %9s %11s\n", "layout", "ratio", "step ms", "predicted ms",
                "off", "waiting", "predicted");
  }
  std::string lines;
  for (const Variant& variant : kVariants) {
    if (std::string_view(variant.name).find(only) == std::string_view::npos) continue;
    Variant plain = variant;
    plain.layout = {};
    const RunFile with = RunOf(folder.path(), steps, variant);
    const RunFile without = RunOf(folder.path(), steps, plain);
    if (!variant.dense && balanced.step == 0) balanced = BalancedStart(balanced_folder.path());
    const Start start = variant.dense ? Start{} : balanced;
    std::vector<double> ratios;
    std::vector<double> predicted_ms;
    std::vector<double> predicted_waiting;
    std::vector<double> step_ms;
    std::vector<double> waiting;
    for (int pair = 0; pair < pairs; ++pair) {
      const planning::StepSimulation predicted = PredictionOf(with, MeasureRates(with));
      const double reference = Train(without, start).step_seconds;
      const Measured measured = Train(with, start);
      predicted_ms.push_back(predicted.seconds * 1e3);
      predicted_waiting.push_back(BubbleOf(predicted));
      ratios.push_back(reference / measured.step_seconds);
      step_ms.push_back(measured.step_seconds * 1e3);
      waiting.push_back(measured.waiting);
    }
    char line[320];
    std::snprintf(
        line, sizeof line,
        json ? R"({"layout": "%s", "ratio": %.3f, "step_ms": %.2f, "predicted_ms": %.2f, )"
               R"("off": %.3f, "waiting": %.3f, "predicted_waiting": %.3f})"
             : "%-26s %7.3f %9.2f %13.2f %+7.3f %9.3f %11.3f",
        variant.name, Median(ratios), Median(step_ms), Median(predicted_ms),
        Median(predicted_ms) / Median(step_ms) - 1, Mean(waiting), Mean(predicted_waiting));
    if (!json) {
      std::printf("%s\n", line);
      std::fflush(stdout);
    }
    lines += (lines.empty() ? "" : ", ") + std::string(line);
  }
  if (lines.empty()) {
    std::fprintf(stderr, "layout_bench: --only %.*s: no layout's name has it\n",
                 static_cast<int>(only.size()), only.data());
    return 2;
  }
  if (json) std::printf("[%s]\n", lines.c_str());
  return 0;
}

// The number behind a flag; `fallback` where it is none.
std::int64_t NumberOf(std::string_view text, std::int64_t fallback) {
  std::int64_t value = fallback;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  int pairs = 15;
  std::int64_t steps = 12;
  std::string_view only;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--json") {
      json = true;
    } else if (i + 1 < argc && argument == "--pairs") {
      pairs = static_cast<int>(std::max<std::int64_t>(1, paceline::NumberOf(argv[++i], pairs)));
    } else if (i + 1 < argc && argument == "--steps") {
      steps = std::max<std::int64_t>(4, paceline::NumberOf(argv[++i], steps));
    } else if (i + 1 < argc && argument == "--only") {
      only = argv[++i];
    } else {
      std::fprintf(stderr, "usage: layout_bench [--pairs N] [--steps N] [--only TEXT] [--json]\n");
      return 2;
    }
  }
  return paceline::Run(pairs, steps, only, json);
}
