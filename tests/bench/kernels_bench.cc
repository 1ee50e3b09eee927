// The kernels beside the matrix products, at the quickstart model's sizes: two sequences of 256
// tokens, hidden size 128, four query heads over two key heads of 32.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "worker/kernels/attention.h"
#include "worker/kernels/cross_entropy.h"
#include "worker/kernels/elementwise.h"
#include "worker/kernels/rmsnorm.h"
#include "worker/kernels/stream.h"
#include "worker/kernels/swiglu.h"

namespace paceline::kernels {
namespace {

std::vector<float> Values(std::int64_t count) {
  std::vector<float> values(count);
  for (std::int64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(i * 7919 % 1009) * 0.002f - 1.0f;
  }
  return values;
}

// Arguments: batch, sequence, heads, kv_heads, head_dim.
struct AttentionArrays {
  explicit AttentionArrays(const benchmark::State& state) {
    shape.batch = static_cast<std::int32_t>(state.range(0));
    shape.sequence = static_cast<std::int32_t>(state.range(1));
    shape.heads = static_cast<std::int32_t>(state.range(2));
    shape.kv_heads = static_cast<std::int32_t>(state.range(3));
    shape.head_dim = static_cast<std::int32_t>(state.range(4));
    shape.q_stride = shape.heads * shape.head_dim;
    shape.k_stride = shape.v_stride = shape.kv_heads * shape.head_dim;
    shape.out_stride = shape.q_stride;
    shape.scale = 0.17f;
    const std::int64_t rows = static_cast<std::int64_t>(shape.batch) * shape.sequence;
    q = Values(rows * shape.q_stride);
    k = Values(rows * shape.k_stride);
    v = Values(rows * shape.v_stride);
    out = dq = dout = q;
    dk = k;
    dv = v;
    logsumexp.resize(rows * shape.heads);
    workspace.resize(AttentionWorkspace(shape));
  }

  void Forward(Stream& stream) {
    AttentionForward(stream, out.data(), logsumexp.data(), q.data(), k.data(), v.data(),
                     workspace.data(), shape);
  }

  // Multiply-adds of the two forward products, the causal half only.
  double Gflop() const {
    return 2e-9 * shape.batch * shape.heads * shape.head_dim * (shape.sequence + 1.0) *
           shape.sequence;
  }

  AttentionShape shape;
  std::vector<float> q, k, v, out, dout, dq, dk, dv, logsumexp, workspace;
};

void AttentionForwardBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  AttentionArrays a(state);
  for (auto _ : state) a.Forward(stream);
  state.counters["GFLOP/s"] =
      benchmark::Counter(a.Gflop(), benchmark::Counter::kIsIterationInvariantRate);
}

void AttentionBackwardBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  AttentionArrays a(state);
  a.Forward(stream);
  for (auto _ : state) {
    AttentionBackward(stream, a.dq.data(), a.dk.data(), a.dv.data(), a.dout.data(), a.q.data(),
                      a.k.data(), a.v.data(), a.out.data(), a.logsumexp.data(), a.workspace.data(),
                      a.shape);
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(2.5 * a.Gflop(), benchmark::Counter::kIsIterationInvariantRate);
}

void AttentionShapes(benchmark::internal::Benchmark* b) {
  b->Args({2, 256, 4, 2, 32})->Args({1, 1024, 8, 2, 64})->Args({1, 2048, 8, 8, 128});
}
BENCHMARK(AttentionForwardBench)->Apply(AttentionShapes);
BENCHMARK(AttentionBackwardBench)->Apply(AttentionShapes);

constexpr std::int64_t kRows = 512;

void SwigluForwardBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::int64_t cols = state.range(0);
  const std::vector<float> x = Values(kRows * 2 * cols);
  std::vector<float> y(kRows * cols);
  for (auto _ : state) {
    SwigluForward(stream, y.data(), x.data(), x.data() + cols, kRows, cols, 2 * cols);
  }
  state.SetItemsProcessed(state.iterations() * kRows * cols);
}
BENCHMARK(SwigluForwardBench)->Arg(96)->Arg(384);

void SwigluBackwardBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::int64_t cols = state.range(0);
  const std::vector<float> x = Values(kRows * 2 * cols), dy = Values(kRows * cols);
  std::vector<float> dx(kRows * 2 * cols);
  for (auto _ : state) {
    SwigluBackward(stream, dx.data(), dx.data() + cols, dy.data(), x.data(), x.data() + cols, kRows,
                   cols, 2 * cols);
  }
  state.SetItemsProcessed(state.iterations() * kRows * cols);
}
BENCHMARK(SwigluBackwardBench)->Arg(96)->Arg(384);

void RmsNormBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::int64_t cols = state.range(0);
  const std::vector<float> x = Values(kRows * cols), w = Values(cols);
  std::vector<float> y(x.size()), rstd(kRows);
  for (auto _ : state) {
    RmsNormForward(stream, y.data(), rstd.data(), x.data(), w.data(), kRows, cols, 1e-5f);
  }
  state.SetItemsProcessed(state.iterations() * kRows * cols);
}
BENCHMARK(RmsNormBench)->Arg(128)->Arg(1024);

void RmsNormBackwardBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::int64_t cols = state.range(0);
  const std::vector<float> x = Values(kRows * cols), w = Values(cols), rstd(kRows, 1.0f);
  std::vector<float> dx(x.size()), dw(cols);
  for (auto _ : state) {
    RmsNormBackward(stream, dx.data(), x.data(), x.data(), w.data(), rstd.data(), nullptr, kRows,
                    cols);
    RmsNormWeightGradient(stream, dw.data(), x.data(), x.data(), rstd.data(), kRows, cols, false);
  }
  state.SetItemsProcessed(state.iterations() * kRows * cols);
}
BENCHMARK(RmsNormBackwardBench)->Arg(128)->Arg(1024);

void CrossEntropyBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::int64_t vocab = state.range(0);
  const std::vector<std::int32_t> targets(kRows, 3);
  std::vector<float> logits = Values(kRows * vocab);
  double loss = 0;
  for (auto _ : state) {
    CrossEntropyForwardBackward(stream, &loss, logits.data(), targets.data(), kRows, vocab, 1.0f);
  }
  state.SetItemsProcessed(state.iterations() * kRows * vocab);
}
BENCHMARK(CrossEntropyBench)->Arg(256)->Arg(8192);

void AdamWBench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::int64_t n = state.range(0);
  std::vector<float> w = Values(n), m(n, 0.1f), v(n, 0.1f);
  const std::vector<float> g = Values(n);
  for (auto _ : state) {
    AdamW(stream, w.data(), m.data(), v.data(), g.data(), n, {.step_size = 1e-3f});
  }
  state.SetItemsProcessed(state.iterations() * n);
}
BENCHMARK(AdamWBench)->Arg(1 << 15)->Arg(1 << 22);

void AddToFloat64Bench(benchmark::State& state) {
  Stream stream(Stream::Mode::kInline, "compute");
  const std::int64_t n = state.range(0);
  std::vector<double> sum(n, 0.0);
  const std::vector<float> g = Values(n);
  for (auto _ : state) AddToFloat64(stream, sum.data(), g.data(), n);
  state.SetItemsProcessed(state.iterations() * n);
}
BENCHMARK(AddToFloat64Bench)->Arg(1 << 15)->Arg(1 << 22);

}  // namespace
}  // namespace paceline::kernels

BENCHMARK_MAIN();
