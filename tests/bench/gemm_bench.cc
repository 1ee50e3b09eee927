// float32 matrix products of the models Paceline trains on a CPU, by its own kernel and by those of
// oneDNN and OpenBLAS that were found when this was configured, one thread each.
// docs/decisions/cpu-matrix-products.md has the figures and the command. Arguments: tokens, output
// features, input features of a linear layer.
#include <benchmark/benchmark.h>
#ifdef PACELINE_OPENBLAS
#include <cblas.h>
#endif
#ifdef PACELINE_DNNL
#include <dnnl.h>
#include <omp.h>
#endif

#include <cstdint>
#include <vector>

#include "worker/kernels/cpu/sgemm.h"

namespace {

enum class Pass { kForward, kInputGradient, kWeightGradient };

struct Operands {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b;
};

// y = x W^T, dx = dy W and dW = dy^T x of a layer with weight W (out, in).
Operands OperandsOf(Pass pass, std::int64_t tokens, std::int64_t out, std::int64_t in) {
  switch (pass) {
    case Pass::kForward:
      return {tokens, out, in, false, true};
    case Pass::kInputGradient:
      return {tokens, in, out, false, false};
    case Pass::kWeightGradient:
      break;
  }
  return {out, in, tokens, true, false};
}

using Multiply = void (*)(const Operands& o, float* c, const float* a, const float* b);

void Paceline(const Operands& o, float* c, const float* a, const float* b) {
  paceline::kernels::cpu::Sgemm(c, a, b, o.m, o.n, o.k,
                                {.transpose_a = o.transpose_a,
                                 .transpose_b = o.transpose_b,
                                 .lda = o.transpose_a ? o.m : o.k,
                                 .ldb = o.transpose_b ? o.k : o.n,
                                 .ldc = o.n});
}

#ifdef PACELINE_DNNL
void OneDnn(const Operands& o, float* c, const float* a, const float* b) {
  omp_set_num_threads(1);
  dnnl_sgemm(o.transpose_a ? 'T' : 'N', o.transpose_b ? 'T' : 'N', o.m, o.n, o.k, 1.0f, a,
             o.transpose_a ? o.m : o.k, b, o.transpose_b ? o.k : o.n, 0.0f, c, o.n);
}
#endif

#ifdef PACELINE_OPENBLAS
void OpenBlas(const Operands& o, float* c, const float* a, const float* b) {
  openblas_set_num_threads(1);
  cblas_sgemm(CblasRowMajor, o.transpose_a ? CblasTrans : CblasNoTrans,
              o.transpose_b ? CblasTrans : CblasNoTrans, o.m, o.n, o.k, 1.0f, a,
              o.transpose_a ? o.m : o.k, b, o.transpose_b ? o.k : o.n, 0.0f, c, o.n);
}
#endif

template <Multiply multiply, Pass pass>
void Product(benchmark::State& state) {
  const Operands o = OperandsOf(pass, state.range(0), state.range(1), state.range(2));
  const std::vector<float> a(o.m * o.k, 0.5f);
  const std::vector<float> b(o.k * o.n, 0.25f);
  std::vector<float> c(o.m * o.n);
  for (auto _ : state) {
    multiply(o, c.data(), a.data(), b.data());
    benchmark::DoNotOptimize(c.data());
    benchmark::ClobberMemory();
  }
  state.counters["GFLOP/s"] = benchmark::Counter(
      2e-9 * static_cast<double>(o.m) * static_cast<double>(o.n) * static_cast<double>(o.k),
      benchmark::Counter::kIsIterationInvariantRate);
}

void Shapes(benchmark::internal::Benchmark* b) {
  for (const std::vector<std::int64_t>& shape : std::vector<std::vector<std::int64_t>>{
           {512, 128, 128},   // the quickstart's projections, two sequences of 256
           {512, 256, 128},   // its logits, and queries, keys and values in one
           {512, 768, 128},   // gate and up of its dense layer
           {512, 128, 384},   // down
           {128, 192, 128},   // gate and up of one expert with its mean share of tokens
           {128, 128, 96},    // down
           {64, 192, 128},    // an unpopular expert
           {200, 192, 128},   // a popular one
           {1024, 512, 512},  // larger models
           {1024, 2048, 512},
           {1024, 2048, 2048}}) {
    b->Args(shape);
  }
}

BENCHMARK(Product<Paceline, Pass::kForward>)->Apply(Shapes);
BENCHMARK(Product<Paceline, Pass::kInputGradient>)->Apply(Shapes);
BENCHMARK(Product<Paceline, Pass::kWeightGradient>)->Apply(Shapes);
#ifdef PACELINE_DNNL
BENCHMARK(Product<OneDnn, Pass::kForward>)->Apply(Shapes);
BENCHMARK(Product<OneDnn, Pass::kInputGradient>)->Apply(Shapes);
BENCHMARK(Product<OneDnn, Pass::kWeightGradient>)->Apply(Shapes);
#endif
#ifdef PACELINE_OPENBLAS
BENCHMARK(Product<OpenBlas, Pass::kForward>)->Apply(Shapes);
BENCHMARK(Product<OpenBlas, Pass::kInputGradient>)->Apply(Shapes);
BENCHMARK(Product<OpenBlas, Pass::kWeightGradient>)->Apply(Shapes);
#endif

}  // namespace

BENCHMARK_MAIN();
