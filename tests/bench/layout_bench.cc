// Layouts beside plain data parallelism at equal work: two ranks of one compute thread, each with
// all its threads on a core of its own, over Gloo, the real trainer. Pairs are interleaved; a
// figure is the median over the pairs of plain step time / layout step time (above 1: faster).
// Beside it what the planner predicts from rates that were measured before, on another shape.
//
// usage: layout_bench [--pairs N] [--steps N] [--json]
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
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
};

const std::vector<Variant> kVariants = {
    {"data 2, dense", {}, true},
    {"data 2, sparse", {}, false},
    {"zero, dense", {.zero = 1}, true},
    {"zero, sparse", {.zero = 1}, false},
    {"expert 2", {.expert = 2}, false},
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
  run.train.micro_batch_size = 2;
  run.train.steps = steps;
  run.launch.nodes = 1;
  run.launch.slots_per_node = kRanks;
  run.layout = variant.layout;
  return run;
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Measured {
  double step_seconds = 0;  // median
  double waiting = 0;       // for other stages, share of the time in steps, the worse rank
};

Measured Train(const RunFile& run) {
  const std::vector<RankOutcome> outcomes = TrainInProcess(run, kRanks, {.pin = true});
  std::vector<double> seconds;
  Measured measured;
  for (const RankOutcome& outcome : outcomes) {
    if (!outcome.status.ok()) {
      std::fprintf(stderr, "layout_bench: %s\n", outcome.status.ToString().c_str());
      std::exit(1);
    }
    for (const v1::WorkerMessage& message : outcome.messages) {
      if (message.has_step()) seconds.push_back(message.step().step_seconds());
    }
    measured.waiting = std::max(measured.waiting, outcome.progress.pipeline_wait_seconds() /
                                                      outcome.progress.step_seconds());
  }
  seconds.erase(seconds.begin(), seconds.begin() + 2);  // memory is touched for the first time
  measured.step_seconds = Median(seconds);
  return measured;
}

// The rates of one rank that has a core to itself.
planning::CostRates MeasureRates(const RunFile& run) {
  absl::StatusOr<planning::CostRates> rates = absl::InternalError("not measured");
  std::jthread([&] {
    PinToCore(0);
    rates = cli::Calibrate(cli::CalibrationShapeFor(run));
  }).join();
  if (!rates.ok()) {
    std::fprintf(stderr, "layout_bench: %s\n", rates.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(rates);
}

planning::StepSimulation PredictionOf(const RunFile& run, const planning::CostRates& rates) {
  planning::Machine machine = planning::CpuMachine(run);
  machine.rates = rates;
  return planning::Predict(run, {LayoutOf(run), run.train.micro_batch_size}, machine);
}

// The share of the step that the worse stage waits.
double BubbleOf(const planning::StepSimulation& step) {
  double most = 0;
  for (const planning::StageParts& parts : step.stages) most = std::max(most, parts.bubble);
  return most / step.seconds;
}

int Run(int pairs, std::int64_t steps, bool json) {
  const TempFolder folder;
  if (!json) {
    std::printf("%-26s %7s %9s %13s %7s %9s %11s\n", "layout", "ratio", "step ms", "predicted ms",
                "off", "waiting", "predicted");
  }
  std::string lines;
  for (const Variant& variant : kVariants) {
    Variant plain = variant;
    plain.layout = {};
    const RunFile with = RunOf(folder.path(), steps, variant);
    const RunFile without = RunOf(folder.path(), steps, plain);
    const planning::StepSimulation predicted = PredictionOf(with, MeasureRates(with));
    std::vector<double> ratios;
    std::vector<double> step_ms;
    std::vector<double> waiting;
    for (int pair = 0; pair < pairs; ++pair) {
      const double reference = Train(without).step_seconds;
      const Measured measured = Train(with);
      ratios.push_back(reference / measured.step_seconds);
      step_ms.push_back(measured.step_seconds * 1e3);
      waiting.push_back(measured.waiting);
    }
    const double predicted_ms = predicted.seconds * 1e3;
    char line[320];
    std::snprintf(line, sizeof line,
                  json
                      ? R"({"layout": "%s", "ratio": %.3f, "step_ms": %.2f, "predicted_ms": %.2f, )"
                        R"("off": %.3f, "waiting": %.3f, "predicted_waiting": %.3f})"
                      : "%-26s %7.3f %9.2f %13.2f %+7.3f %9.3f %11.3f",
                  variant.name, Median(ratios), Median(step_ms), predicted_ms,
                  predicted_ms / Median(step_ms) - 1, Median(waiting), BubbleOf(predicted));
    if (!json) {
      std::printf("%s\n", line);
      std::fflush(stdout);
    }
    lines += (lines.empty() ? "" : ", ") + std::string(line);
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
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--json") {
      json = true;
    } else if (i + 1 < argc && argument == "--pairs") {
      pairs = static_cast<int>(std::max<std::int64_t>(1, paceline::NumberOf(argv[++i], pairs)));
    } else if (i + 1 < argc && argument == "--steps") {
      steps = std::max<std::int64_t>(4, paceline::NumberOf(argv[++i], steps));
    } else {
      std::fprintf(stderr, "usage: layout_bench [--pairs N] [--steps N] [--json]\n");
      return 2;
    }
  }
  return paceline::Run(pairs, steps, json);
}
