// float32 matrix products of the models Paceline trains on a CPU, by the two libraries that could
// serve them, one thread each. docs/decisions/cpu-matrix-products.md has the figures and the
// command. Arguments: tokens, output features, input features of a linear layer.
#include <benchmark/benchmark.h>
#include <cblas.h>
#include <dnnl.h>
#include <omp.h>

#include <cstdint>
#include <vector>

namespace {

enum class Library { kOpenBlas, kOneDnn };
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

template <Library library, Pass pass>
void Product(benchmark::State& state) {
  openblas_set_num_threads(1);
  omp_set_num_threads(1);
  const Operands o = OperandsOf(pass, state.range(0), state.range(1), state.range(2));
  const std::vector<float> a(o.m * o.k, 0.5f);
  const std::vector<float> b(o.k * o.n, 0.25f);
  std::vector<float> c(o.m * o.n);
  const std::int64_t lda = o.transpose_a ? o.m : o.k;
  const std::int64_t ldb = o.transpose_b ? o.k : o.n;
  for (auto _ : state) {
    if constexpr (library == Library::kOpenBlas) {
      cblas_sgemm(CblasRowMajor, o.transpose_a ? CblasTrans : CblasNoTrans,
                  o.transpose_b ? CblasTrans : CblasNoTrans, o.m, o.n, o.k, 1.0f, a.data(), lda,
                  b.data(), ldb, 0.0f, c.data(), o.n);
    } else {
      dnnl_sgemm(o.transpose_a ? 'T' : 'N', o.transpose_b ? 'T' : 'N', o.m, o.n, o.k, 1.0f,
                 a.data(), lda, b.data(), ldb, 0.0f, c.data(), o.n);
    }
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

BENCHMARK(Product<Library::kOpenBlas, Pass::kForward>)->Apply(Shapes);
BENCHMARK(Product<Library::kOneDnn, Pass::kForward>)->Apply(Shapes);
BENCHMARK(Product<Library::kOpenBlas, Pass::kInputGradient>)->Apply(Shapes);
BENCHMARK(Product<Library::kOneDnn, Pass::kInputGradient>)->Apply(Shapes);
BENCHMARK(Product<Library::kOpenBlas, Pass::kWeightGradient>)->Apply(Shapes);
BENCHMARK(Product<Library::kOneDnn, Pass::kWeightGradient>)->Apply(Shapes);

}  // namespace

BENCHMARK_MAIN();
