// One training step of a rank on one thread: forward and backward of a micro-batch, and what part
// of it each does.   build/bench/model_bench
#include <vector>

#include "benchmark/benchmark.h"
#include "worker/model/model.h"
#include "worker/model/optimizer.h"

namespace paceline {
namespace {

constexpr std::int64_t kRows = 2;
constexpr std::int64_t kSequence = 256;

ModelSection Quickstart() {
  ModelSection model;
  model.vocab_size = 256;
  model.hidden_size = 128;
  model.num_hidden_layers = 4;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 32;
  model.intermediate_size = 384;
  model.n_routed_experts = 8;
  model.n_shared_experts = 1;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 96;
  model.first_k_dense_replace = 1;
  model.scoring_func = "sigmoid";
  return model;
}

ModelSection DenseOf512() {
  ModelSection model;
  model.vocab_size = 256;
  model.hidden_size = 512;
  model.num_hidden_layers = 6;
  model.num_attention_heads = 8;
  model.num_key_value_heads = 4;
  model.head_dim = 64;
  model.intermediate_size = 1536;
  return model;
}

struct Rank {
  explicit Rank(const ModelSection& section)
      : model(Model::Create(section, {kRows, kSequence, true}, compute).value()),
        exp_avg(model->weights().size()),
        exp_avg_sq(model->weights().size()) {
    model->Initialize(1);
    for (std::int64_t i = 0; i < kRows * kSequence + 1; ++i) {
      tokens.push_back(static_cast<std::int32_t>((i * i + i / 7) % 256));
    }
  }

  void Forward() {
    const std::span<const std::int32_t> all(tokens);
    const std::size_t count = kRows * kSequence;
    benchmark::DoNotOptimize(model->Forward({all.first(count), all.last(count), kRows, kSequence}));
  }

  void Backward() {
    model->Backward(1.0f / (kRows * kSequence), /*accumulate=*/false, bucket_ready);
  }

  void Update() {
    benchmark::DoNotOptimize(SumOfSquares(compute, model->gradients()));
    AdamWOverParameters(compute, {.step = ++step, .learning_rate = 1e-4f}, model->parameters(), 0,
                        model->weights(), model->gradients(), exp_avg, exp_avg_sq);
  }

  Stream compute{Stream::Mode::kInline, "compute"};
  std::unique_ptr<Model> model;
  std::vector<float> exp_avg;
  std::vector<float> exp_avg_sq;
  std::vector<std::int32_t> tokens;
  std::function<void(std::size_t)> bucket_ready = [](std::size_t) {};
  std::int64_t step = 0;
};

void ReportTokens(benchmark::State& state) {
  state.counters["tokens/s"] =
      benchmark::Counter(kRows * kSequence, benchmark::Counter::kIsIterationInvariantRate);
}

void BM_Forward(benchmark::State& state, const ModelSection& section) {
  Rank rank(section);
  for (auto _ : state) rank.Forward();
  ReportTokens(state);
}

void BM_ForwardBackward(benchmark::State& state, const ModelSection& section) {
  Rank rank(section);
  for (auto _ : state) {
    rank.Forward();
    rank.Backward();
  }
  ReportTokens(state);
}

void BM_Update(benchmark::State& state, const ModelSection& section) {
  Rank rank(section);
  rank.Forward();
  rank.Backward();
  for (auto _ : state) rank.Update();
}

BENCHMARK_CAPTURE(BM_Forward, quickstart, Quickstart())->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_ForwardBackward, quickstart, Quickstart())->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Update, quickstart, Quickstart())->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Forward, dense_512, DenseOf512())->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_ForwardBackward, dense_512, DenseOf512())->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Update, dense_512, DenseOf512())->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace paceline

BENCHMARK_MAIN();
