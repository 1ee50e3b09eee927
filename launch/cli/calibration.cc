#include "launch/cli/calibration.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "launch/cli/link_rates.h"
#include "worker/kernels/attention.h"
#include "worker/kernels/elementwise.h"
#include "worker/kernels/gemm.h"
#include "worker/model/model.h"
#include "worker/model/optimizer.h"

namespace paceline::cli {
namespace {

constexpr int kRepeatsMin = 5;
constexpr double kSecondsEach = 0.2;
constexpr double kSecondsOfPasses = 2;    // to see how uneven they are
constexpr double kFlopsMax = 5e10;        // of one micro-batch
constexpr double kParametersMax = 2.5e8;  // 4 GB with gradients and moments
constexpr double kUnlimited = 1e300;

struct RankRates {
  planning::CostRates rates;   // but for the spread, which takes all ranks
  std::vector<double> passes;  // seconds of equal passes, one after the other
};

// The times of `work`, run again and again for about `budget` seconds.
std::vector<double> SecondsOf(const std::function<void()>& work, double budget) {
  using Clock = std::chrono::steady_clock;
  work();  // memory is touched, caches are warm
  std::vector<double> seconds;
  double sum = 0;
  while (sum < budget || seconds.size() < kRepeatsMin) {
    const Clock::time_point start = Clock::now();
    work();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    sum += seconds.back();
  }
  return seconds;
}

double Quantile(std::vector<double> values, double share) {
  const auto at =
      values.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size()));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

double MedianSeconds(const std::function<void()>& work) {
  return Quantile(SecondsOf(work, kSecondsEach), 0.5);
}

// Of a normal distribution one standard deviation to each side holds 68 %.
double DeviationOf(const std::vector<double>& values) {
  return 0.5 * (Quantile(values, 0.84) - Quantile(values, 0.16));
}

// From the passes of every rank: a pass differs from the next one by what is its own, from all of
// them also by its rank's speed at its time.
planning::Spread SpreadOf(const std::vector<RankRates>& ranks) {
  std::vector<double> logarithms;
  std::vector<double> changes;
  for (const RankRates& rank : ranks) {
    for (std::size_t i = 0; i < rank.passes.size(); ++i) {
      logarithms.push_back(std::log(rank.passes[i]));
      if (i > 0) changes.push_back(std::log(rank.passes[i] / rank.passes[i - 1]));
    }
  }
  const double all = DeviationOf(logarithms);
  planning::Spread spread;
  spread.pass = std::min(all, DeviationOf(changes) / std::sqrt(2.0));
  spread.step = std::sqrt(all * all - spread.pass * spread.pass);
  return spread;
}

struct Product {
  std::int64_t out;
  std::int64_t in;
};

// A buffer of small numbers that are no denormals.
std::vector<float> Values(std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = 0.01f + 1e-5f * static_cast<float>(i % 1000);
  }
  return values;
}

std::int64_t Largest(const std::vector<Product>& products, auto size) {
  std::int64_t most = 0;
  for (const Product& product : products) most = std::max<std::int64_t>(most, size(product));
  return most;
}

// FLOP/s over the forward and both backward products of every layer given.
double ProductFlops(Stream& stream, const std::vector<Product>& products, std::int64_t tokens) {
  const std::int64_t wide =
      Largest(products, [](const Product& p) { return std::max(p.in, p.out); });
  std::vector<float> x = Values(tokens * wide);
  std::vector<float> y = Values(tokens * wide);
  std::vector<float> w = Values(Largest(products, [](const Product& p) { return p.in * p.out; }));
  double flops = 0;
  for (const Product& p : products) flops += 6.0 * static_cast<double>(tokens * p.in * p.out);
  return flops / MedianSeconds([&] {
           for (const Product& p : products) {
             kernels::Gemm(stream, y.data(), x.data(), w.data(), tokens, p.out, p.in,
                           {.transpose_b = true});
             kernels::Gemm(stream, x.data(), y.data(), w.data(), tokens, p.in, p.out);
             kernels::Gemm(stream, w.data(), y.data(), x.data(), p.out, p.in, tokens,
                           {.transpose_a = true});
             std::fill(w.begin(), w.begin() + p.out, 0.01f);  // keeps the values small
           }
         });
}

// The same of grouped products, the rows spread evenly.
double ExpertFlops(Stream& stream, const ModelSection& model, std::int64_t tokens) {
  const std::int64_t rows = tokens * model.num_experts_per_tok;
  const auto experts = static_cast<std::int32_t>(model.n_routed_experts);
  const std::vector<Product> products = {{2 * model.moe_intermediate_size, model.hidden_size},
                                         {model.hidden_size, model.moe_intermediate_size}};
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(experts) + 1);
  for (std::int32_t e = 0; e <= experts; ++e) {
    offsets[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(rows * e / experts);
  }
  const std::int64_t wide =
      Largest(products, [](const Product& p) { return std::max(p.in, p.out); });
  std::vector<float> x = Values(rows * wide);
  std::vector<float> y = Values(rows * wide);
  std::vector<float> w =
      Values(experts * Largest(products, [](const Product& p) { return p.in * p.out; }));
  double flops = 0;
  for (const Product& p : products) flops += 6.0 * static_cast<double>(rows * p.in * p.out);
  return flops / MedianSeconds([&] {
           for (const Product& p : products) {
             const std::int64_t each = p.in * p.out;
             kernels::GroupedGemm(stream, y.data(), x.data(), w.data(), offsets.data(), p.out, p.in,
                                  each, {.experts = experts, .transpose_b = true});
             kernels::GroupedGemm(stream, x.data(), y.data(), w.data(), offsets.data(), p.in, p.out,
                                  each, {.experts = experts});
             kernels::GroupedGemmWeights(stream, w.data(), y.data(), x.data(), offsets.data(),
                                         p.out, p.in, each, {.experts = experts});
           }
         });
}

void MeasureAttention(Stream& stream, const ModelSection& model,
                      const planning::MicroBatchShape& batch, planning::CostRates& rates) {
  const std::int64_t query = model.num_attention_heads * model.head_dim;
  const std::int64_t key_value = model.num_key_value_heads * model.head_dim;
  const std::int64_t width = query + 2 * key_value;
  const std::int64_t tokens = batch.rows * batch.sequence;
  const auto stride = static_cast<std::int32_t>(width);
  const kernels::AttentionShape shape{
      .batch = static_cast<std::int32_t>(batch.rows),
      .sequence = static_cast<std::int32_t>(batch.sequence),
      .heads = static_cast<std::int32_t>(model.num_attention_heads),
      .kv_heads = static_cast<std::int32_t>(model.num_key_value_heads),
      .head_dim = static_cast<std::int32_t>(model.head_dim),
      .q_stride = stride,
      .k_stride = stride,
      .v_stride = stride,
      .out_stride = static_cast<std::int32_t>(query),
      .scale = 0.1f};
  std::vector<float> qkv = Values(tokens * width);
  std::vector<float> dqkv(qkv.size());
  std::vector<float> out = Values(tokens * query);
  const std::vector<float> dout = Values(tokens * query);
  std::vector<float> logsumexp(static_cast<std::size_t>(tokens * model.num_attention_heads));
  std::vector<float> workspace(static_cast<std::size_t>(kernels::AttentionWorkspace(shape)));
  const float* k = qkv.data() + query;
  const float* v = k + key_value;
  // Causal: half of the square, two products; the backward has five.
  const double forward = 2.0 * batch.tokens() * static_cast<double>(batch.sequence * query);
  rates.attention_forward_flops =
      forward / MedianSeconds([&] {
        kernels::AttentionForward(stream, out.data(), logsumexp.data(), qkv.data(), k, v,
                                  workspace.data(), shape);
      });
  rates.attention_backward_flops =
      2.5 * forward / MedianSeconds([&] {
        kernels::AttentionBackward(stream, dqkv.data(), dqkv.data() + query,
                                   dqkv.data() + query + key_value, dout.data(), qkv.data(), k, v,
                                   out.data(), logsumexp.data(), workspace.data(), shape);
      });
}

// Seconds that the cost model gives one micro-batch of the whole model.
double ModelledSeconds(const CalibrationShape& shape, const planning::CostRates& rates) {
  planning::Machine machine;
  machine.rates = rates;
  planning::PassSeconds seconds = planning::SecondsOfEnds(
      shape.model, {0, shape.model.num_hidden_layers}, shape.batch, machine);
  for (std::int64_t layer = 0; layer < shape.model.num_hidden_layers; ++layer) {
    seconds += planning::SecondsOfLayer(shape.model, layer, shape.batch, 1, machine,
                                        /*split_backward=*/false);
  }
  return seconds.total();
}

// What whole layers take beyond their products and attention goes to the element-wise kernels.
absl::Status MeasureModel(Stream& stream, const CalibrationShape& shape, RankRates& rank) {
  const std::int64_t tokens = shape.batch.rows * shape.batch.sequence;
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                   Model::Create(shape.model,
                                 {.micro_batch_size = shape.batch.rows,
                                  .sequence_length = shape.batch.sequence,
                                  .training = true},
                                 stream));
  model->Initialize(/*seed=*/1);
  std::vector<std::int32_t> text;
  for (std::int64_t i = 0; i <= tokens; ++i) {
    text.push_back(static_cast<std::int32_t>((i * i + i / 7) % shape.model.vocab_size));
  }
  const std::span<const std::int32_t> all(text);
  const auto count = static_cast<std::size_t>(tokens);
  const MicroBatch batch{all.first(count), all.last(count), shape.batch.rows, shape.batch.sequence};
  const double measured = MedianSeconds([&] {
    model->Forward(batch);
    model->Backward(1.0f / static_cast<float>(tokens), /*accumulate=*/false, [](std::size_t) {});
  });
  rank.passes = SecondsOf([&] { model->Forward(batch); }, kSecondsOfPasses);
  planning::CostRates& rates = rank.rates;
  rates.accumulation_bytes = kUnlimited;
  rates.memory_bytes = kUnlimited;
  const double products = ModelledSeconds(shape, rates);
  rates.memory_bytes = 1;
  const double bytes = ModelledSeconds(shape, rates) - products;
  rates.memory_bytes = bytes / std::max(measured - products, 0.02 * measured);

  const std::size_t elements = model->weights().size();
  std::vector<float> first(elements);
  std::vector<float> second(elements);
  AdamWStep step{.step = 0, .learning_rate = 1e-6f};
  // As the cost model counts: weights, both moments, and gradients twice.
  rates.optimizer_bytes =
      32.0 * static_cast<double>(elements) / MedianSeconds([&] {
        ++step.step;
        SumOfSquares(stream, model->gradients());
        AdamWOverParameters(stream, step, model->parameters(), 0, model->weights(),
                            model->gradients(), first, second);
      });
  std::vector<double> sums(elements);
  rates.accumulation_bytes = 20.0 * static_cast<double>(elements) / MedianSeconds([&] {
                               kernels::AddToFloat64(stream, sums.data(), model->gradients().data(),
                                                     static_cast<std::int64_t>(elements));
                             });
  return stream.Synchronize();
}

std::vector<Product> LayerProducts(const ModelSection& model) {
  const std::int64_t query = model.num_attention_heads * model.head_dim;
  const std::int64_t key_value = model.num_key_value_heads * model.head_dim;
  std::vector<Product> products;
  for (std::int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    products.push_back({query + 2 * key_value, model.hidden_size});
    products.push_back({model.hidden_size, query});
    std::int64_t width = model.intermediate_size;
    if (model.IsSparse(layer)) {
      products.push_back({model.n_routed_experts, model.hidden_size});
      width = model.n_shared_experts * model.moe_intermediate_size;
    }
    if (width == 0) continue;
    products.push_back({2 * width, model.hidden_size});
    products.push_back({model.hidden_size, width});
  }
  return products;
}

absl::StatusOr<RankRates> MeasureRank(const CalibrationShape& shape) {
  const ModelSection& model = shape.model;
  Stream stream(Stream::Mode::kInline, "calibration");
  const std::int64_t tokens = shape.batch.rows * shape.batch.sequence;
  RankRates rank;
  planning::CostRates& rates = rank.rates;
  rates.overlap = 0;
  rates.matrix_flops = ProductFlops(stream, LayerProducts(model), tokens);
  rates.head_flops = ProductFlops(stream, {{model.vocab_size, model.hidden_size}}, tokens);
  rates.expert_flops =
      model.n_routed_experts > 0 ? ExpertFlops(stream, model, tokens) : rates.matrix_flops;
  MeasureAttention(stream, model, shape.batch, rates);
  RETURN_IF_ERROR(MeasureModel(stream, shape, rank));
  return rank;
}

// Rates at which all ranks together take the mean of their times.
planning::CostRates MeanOf(const std::vector<RankRates>& ranks) {
  planning::CostRates mean = ranks[0].rates;
  for (double planning::CostRates::*rate :
       {&planning::CostRates::matrix_flops, &planning::CostRates::expert_flops,
        &planning::CostRates::head_flops, &planning::CostRates::attention_forward_flops,
        &planning::CostRates::attention_backward_flops, &planning::CostRates::memory_bytes,
        &planning::CostRates::accumulation_bytes, &planning::CostRates::optimizer_bytes}) {
    double seconds = 0;
    for (const RankRates& rank : ranks) seconds += 1 / (rank.rates.*rate);
    mean.*rate = static_cast<double>(ranks.size()) / seconds;
  }
  mean.spread = SpreadOf(ranks);
  return mean;
}

}  // namespace

CalibrationShape CalibrationShapeFor(const RunFile& run_file) {
  CalibrationShape shape{run_file.model,
                         {2 * run_file.train.micro_batch_size,
                          std::max<std::int64_t>(1, run_file.train.sequence_length / 2)}};
  ModelSection& model = shape.model;
  const bool has_dense = !model.IsSparse(0);
  const bool has_sparse = model.IsSparse(model.num_hidden_layers - 1);
  model.num_hidden_layers = (has_dense ? 1 : 0) + (has_sparse ? 1 : 0);
  model.first_k_dense_replace = has_dense ? 1 : 0;
  const auto flops = [&] {
    return shape.batch.tokens() * TrainingFlopsPerToken(model, shape.batch.sequence);
  };
  while (flops() > kFlopsMax && shape.batch.rows > 1) shape.batch.rows /= 2;
  while (flops() > kFlopsMax && shape.batch.sequence > 16) shape.batch.sequence /= 2;
  return shape;
}

absl::StatusOr<planning::CostRates> Calibrate(const CalibrationShape& shape, int ranks,
                                              const std::function<void(int rank)>& on_rank) {
  PACELINE_CHECK(ranks > 0);
  const double parameters = static_cast<double>(SizeOfModel(shape.model).parameters);
  if (parameters > kParametersMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--calibrate: two layers of this model have ", parameters,
                     " parameters, too many to measure in seconds (at most ", kParametersMax,
                     "); describe the machine in a cluster file instead"));
  }
  // Ranks that compute at once need their memory at once.
  ranks = std::min(ranks, static_cast<int>(kParametersMax / parameters));
  std::vector<absl::StatusOr<RankRates>> measured(static_cast<std::size_t>(ranks),
                                                  absl::UnknownError("not measured"));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        if (on_rank) on_rank(rank);
        measured[static_cast<std::size_t>(rank)] = MeasureRank(shape);
      });
    }
  }
  std::vector<RankRates> of_ranks;
  for (absl::StatusOr<RankRates>& rank : measured) {
    RETURN_IF_ERROR(rank.status());
    of_ranks.push_back(*std::move(rank));
  }
  planning::CostRates rates = MeanOf(of_ranks);
  ASSIGN_OR_RETURN(const LinkRates links, MeasureLinks(on_rank));
  rates.inside_node = rates.between_nodes = links.message;
  rates.reduction_inside_node = rates.reduction_between_nodes = links.reduction;
  rates.exchange_inside_node = rates.exchange_between_nodes = links.exchange;
  return rates;
}

}  // namespace paceline::cli
