// How long the planner takes. Run from the project's folder: it reads the recipes.
#include <string>

#include "benchmark/benchmark.h"
#include "common/planning/planner.h"

namespace paceline::planning {
namespace {

// A DeepSeek-V3-sized model on 2,048 and on 16,384 devices.
void BM_ChooseLayout(benchmark::State& state) {
  const auto run_file = LoadRunFile("launch/recipes/deepseek-v3.toml", {});
  const auto cluster =
      LoadClusterFile("launch/recipes/clusters/deepseek-v3-h800.toml",
                      {{"cluster.nodes=" + std::to_string(state.range(0) / 8), "."}});
  if (!run_file.ok() || !cluster.ok()) {
    state.SkipWithError("recipes not found: run from the project's folder");
    return;
  }
  RunFile run = *run_file;
  run.train.global_batch_size = 16384;
  for (auto _ : state) {
    const auto choices = ChooseLayout(run, MachineOf(*cluster, run));
    if (!choices.ok()) {
      state.SkipWithError(std::string(choices.status().message()).c_str());
      return;
    }
    state.counters["layouts"] = static_cast<double>(choices->tried);
    state.counters["step_s"] = choices->best[0].step.seconds;
  }
}
BENCHMARK(BM_ChooseLayout)->Arg(2048)->Arg(16384)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace paceline::planning

BENCHMARK_MAIN();
