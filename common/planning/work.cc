#include "common/planning/work.h"

#include <algorithm>
#include <cmath>

namespace paceline::planning {
namespace {

// A backward of attention multiplies five times where the forward does twice, since it makes the
// scores anew. Dao et al. 2022, arXiv:2205.14135.
constexpr double kAttentionBackwardOverForward = 2.5;

// The model's widths as floating-point numbers.
struct Widths {
  explicit Widths(const ModelSection& model)
      : hidden(static_cast<double>(model.hidden_size)),
        query(static_cast<double>(model.num_attention_heads * model.head_dim)),
        key_value(2 * static_cast<double>(model.num_key_value_heads * model.head_dim)),
        heads(static_cast<double>(model.num_attention_heads)),
        dense(static_cast<double>(model.intermediate_size)),
        expert(static_cast<double>(model.moe_intermediate_size)),
        shared(static_cast<double>(model.n_shared_experts * model.moe_intermediate_size)),
        experts(static_cast<double>(model.n_routed_experts)),
        top_k(static_cast<double>(model.num_experts_per_tok)),
        vocab(static_cast<double>(model.vocab_size)) {}

  double hidden, query, key_value, heads, dense, expert, shared, experts, top_k, vocab;
};

bool HasHead(const ModelSection& model, const LayerRange& range) {
  return range.end == model.num_hidden_layers;
}

// Rows of routed experts that a rank has room for, a micro-batch.
double ReceiveRows(const Widths& w, double tokens, int expert, const KeptBytes& kept) {
  const double mean = tokens * w.top_k;
  if (expert == 1) return mean;
  if (kept.receive_room > 0) return kept.receive_room * mean;
  return expert * tokens * std::min(w.top_k, w.experts / expert);
}

// Values that one token keeps in the attention half: the residual stream before it, the norm's
// output, queries, keys, values, what was attended.
double AttentionValues(const Widths& w, bool recompute) {
  return w.hidden + (recompute ? 0 : w.hidden) + w.query + w.key_value + w.query + w.heads;
}

double LayerSavedBytes(const ModelSection& model, std::int64_t layer, double tokens, int expert,
                       const KeptBytes& kept) {
  const Widths w(model);
  const double norm = kept.recompute_cheap ? 0 : w.hidden;
  // gate, up, and the activation's output.
  const double swiglu = kept.recompute_cheap ? 2 : 3;
  double bytes = tokens * kept.activation * AttentionValues(w, kept.recompute_cheap);
  bytes += tokens * kept.activation * (w.hidden + norm);  // residual stream before this half
  if (!model.IsSparse(layer)) return bytes + tokens * kept.expert_activation * swiglu * w.dense;
  bytes += tokens * (4 * w.experts + 16 * w.top_k);  // scores, weights and the order of rows
  bytes += tokens * kept.expert_activation * swiglu * w.shared;
  const double rows = ReceiveRows(w, tokens, expert, kept);
  // Experts' inputs and outputs, gate, up and the activation's output.
  const double outputs = kept.recompute_cheap ? 0 : w.hidden;
  bytes += rows * kept.expert_activation * (w.hidden + outputs + swiglu * w.expert);
  if (expert > 1 && !kept.recompute_cheap) {
    bytes += 2 * tokens * w.top_k * w.hidden * kept.activation;  // what was sent and came back
  }
  return bytes;
}

double LayerScratchBytes(const ModelSection& model, std::int64_t layer, double tokens, int expert,
                         const KeptBytes& kept) {
  const Widths w(model);
  const double attention = kept.activation * tokens * (w.query + w.query + w.key_value + w.hidden);
  if (!model.IsSparse(layer)) {
    return std::max(attention,
                    tokens * (kept.activation * w.hidden + kept.expert_activation * w.dense));
  }
  const double rows = ReceiveRows(w, tokens, expert, kept);
  const double sparse = tokens * (4 * (w.experts + w.top_k) + kept.activation * w.hidden +
                                  kept.expert_activation * w.shared) +
                        rows * kept.expert_activation * w.expert;
  return std::max(attention, sparse);
}

// Forward FLOPs of one token, by kind of kernel, and bytes that element-wise kernels move.
struct LayerWork {
  double matrix = 0;
  double shared = 0;  // of `matrix`: shared experts, which run while tokens are exchanged
  double experts = 0;
  double attention = 0;
  double bytes = 0;
  double parameters = 0;  // whose gradients a micro-batch adds to
};

LayerWork WorkOfLayer(const ModelSection& model, std::int64_t layer, double sequence, int expert,
                      const KeptBytes& kept) {
  const Widths w(model);
  const double a = kept.activation;
  const double x = kept.expert_activation;
  // A value that goes into a product in another format is read once and written once more.
  const double cast = kept.cast ? a + 1 : 0;
  LayerWork work;
  work.matrix = 2 * w.hidden * (2 * w.query + w.key_value);
  work.attention = 2 * sequence * w.query;  // causal: half of the square, two products
  // Norm, rotation of queries and keys, and the addition to the residual stream, read and write.
  work.bytes = a * (2 * w.hidden + 2 * (w.query + w.key_value / 2) + 3 * w.hidden) +
               cast * (w.hidden + w.query);
  if (!model.IsSparse(layer)) {
    work.matrix += 6 * w.hidden * w.dense;
    work.bytes += 5 * a * w.hidden + 3 * x * w.dense + cast * (w.hidden + w.dense);
  } else {
    work.shared = 6 * w.hidden * w.shared;
    work.matrix += 2 * w.hidden * w.experts + work.shared;
    work.experts = 6 * w.hidden * w.expert * w.top_k;
    work.bytes += 5 * a * w.hidden + 3 * x * w.shared + 8 * w.experts;
    // Rows gathered, activated, and summed with their weights.
    work.bytes += w.top_k * (2 * x * w.hidden + 3 * x * w.expert + a * w.hidden);
    work.bytes += cast * (w.hidden + w.shared + w.top_k * w.expert);
  }
  const ParameterCounts counts = ParametersOf(model, {layer, layer + 1}, expert);
  work.parameters = counts.replicated + counts.routed;
  if (layer == 0) work.parameters -= w.vocab * w.hidden;
  if (layer + 1 == model.num_hidden_layers) {
    work.parameters -= w.hidden + (model.tie_word_embeddings ? 0 : w.vocab * w.hidden);
  }
  return work;
}

// Bytes that adding one micro-batch's gradient to the step's sum moves, a parameter.
double AccumulationBytes(const KeptBytes& kept) {
  return kept.exact_sum > 0 ? kept.gradient + 2 * kept.exact_sum : 2 * kept.gradient;
}

}  // namespace

ParameterCounts& ParameterCounts::operator+=(const ParameterCounts& other) {
  replicated += other.replicated;
  routed += other.routed;
  return *this;
}

PassSeconds& PassSeconds::operator+=(const PassSeconds& other) {
  forward += other.forward;
  backward_input += other.backward_input;
  backward_weights += other.backward_weights;
  exchange_forward += other.exchange_forward;
  exchange_backward += other.exchange_backward;
  return *this;
}

ParameterCounts ParametersOf(const ModelSection& model, const LayerRange& range, int expert) {
  const Widths w(model);
  ParameterCounts counts;
  for (std::int64_t layer = range.first; layer < range.end; ++layer) {
    counts.replicated += w.hidden * (2 * w.query + w.key_value) + 2 * w.hidden;
    if (model.IsSparse(layer)) {
      counts.replicated += w.experts * w.hidden + 3 * w.hidden * w.shared;
      counts.routed += w.experts / expert * 3 * w.hidden * w.expert;
    } else {
      counts.replicated += 3 * w.hidden * w.dense;
    }
  }
  if (range.first == 0) counts.replicated += w.vocab * w.hidden;
  if (HasHead(model, range)) {
    counts.replicated += w.hidden + (model.tie_word_embeddings ? 0 : w.vocab * w.hidden);
  }
  return counts;
}

double SavedBytes(const ModelSection& model, const LayerRange& range, const MicroBatchShape& batch,
                  int expert, const KeptBytes& kept) {
  const Widths w(model);
  const double tokens = batch.tokens();
  double bytes = tokens * kept.activation * w.hidden;  // the residual stream at the end
  for (std::int64_t layer = range.first; layer < range.end; ++layer) {
    bytes += LayerSavedBytes(model, layer, tokens, expert, kept);
  }
  // The norm's output and the logits, which the loss's gradient replaces.
  if (HasHead(model, range)) bytes += tokens * (kept.activation * w.hidden + 4 * w.vocab);
  return bytes;
}

double BetweenBytes(const ModelSection& model, const LayerRange& range,
                    const MicroBatchShape& batch, int expert, const KeptBytes& kept) {
  const Widths w(model);
  const double tokens = batch.tokens();
  double bytes = 0;
  for (std::int64_t layer = range.first; layer < range.end; ++layer) {
    // Queries, keys and values, the norms' outputs, and what came from above, of both halves.
    bytes += tokens * kept.activation * (w.query + w.key_value + 4 * w.hidden);
    if (!model.IsSparse(layer)) continue;
    bytes += tokens * 4 * w.experts;
    bytes += ReceiveRows(w, tokens, expert, kept) * kept.activation * w.hidden;
  }
  if (HasHead(model, range)) bytes += tokens * kept.activation * w.hidden;
  return bytes;
}

double ScratchBytes(const ModelSection& model, const LayerRange& range,
                    const MicroBatchShape& batch, int expert, const KeptBytes& kept) {
  double most = 0;
  for (std::int64_t layer = range.first; layer < range.end; ++layer) {
    most = std::max(most, LayerScratchBytes(model, layer, batch.tokens(), expert, kept));
  }
  const double gradient = kept.activation * static_cast<double>(model.hidden_size);
  return most + batch.tokens() * gradient;
}

double ExchangeSeconds(const ModelSection& model, double tokens, int expert, double bytes,
                       const Machine& machine) {
  if (expert == 1) return 0;
  const Widths w(model);
  // Of `places` equally likely ones, those that at least one of a token's experts lies on.
  const auto reached = [&](double places) {
    return places * (1 - std::pow(1 - 1 / places, w.top_k));
  };
  const double slots = static_cast<double>(machine.slots_per_node);
  const double nodes = std::max(1.0, expert / slots);
  double copies = 0;  // of a token, sent
  if (nodes > 1) {
    copies = w.top_k * (nodes - 1) / nodes;
    if (machine.one_copy_a_node) copies = reached(nodes);
    if (machine.one_copy_a_node && machine.nodes_per_token_max > 0) {
      copies = std::min(copies, static_cast<double>(machine.nodes_per_token_max));
    }
  } else {
    copies = machine.one_copy_a_node ? reached(expert) : w.top_k * (expert - 1.0) / expert;
  }
  const CostRates& rates = *machine.rates;
  const LinkRate& link = nodes > 1 ? rates.exchange_between_nodes : rates.exchange_inside_node;
  return link.Seconds(tokens * copies * w.hidden * bytes);
}

PassSeconds SecondsOfLayer(const ModelSection& model, std::int64_t layer,
                           const MicroBatchShape& batch, int expert, const Machine& machine,
                           bool split_backward) {
  const CostRates& rates = *machine.rates;
  const LayerWork work =
      WorkOfLayer(model, layer, static_cast<double>(batch.sequence), expert, machine.kept);
  const double tokens = batch.tokens();
  const double products = tokens * (work.matrix / rates.matrix_flops +
                                    (work.experts > 0 ? work.experts / rates.expert_flops : 0));
  const double bytes = tokens * work.bytes / rates.memory_bytes;
  const double again = machine.kept.recompute_cheap ? bytes : 0;
  PassSeconds seconds;
  seconds.forward = products + tokens * work.attention / rates.attention_forward_flops + bytes;
  // A backward's element-wise kernels read the forward's values and the gradients.
  seconds.backward_input =
      products + again + 2 * bytes +
      kAttentionBackwardOverForward * tokens * work.attention / rates.attention_backward_flops;
  seconds.backward_weights =
      products + work.parameters * AccumulationBytes(machine.kept) / rates.accumulation_bytes;
  if (!model.IsSparse(layer) || expert == 1) return seconds;
  const double dispatch = ExchangeSeconds(model, tokens, expert, machine.kept.dispatch, machine);
  const double combine = ExchangeSeconds(model, tokens, expert, machine.kept.combine, machine);
  const auto exposed = [&rates](double exchange, double work_meanwhile) {
    return exchange - rates.overlap * std::min(exchange, work_meanwhile);
  };
  // Of a shared expert's three products two come first in the forward and last in the backward.
  const double shared = tokens * work.shared / rates.matrix_flops;
  const double weights = split_backward ? 0 : shared + tokens * work.experts / rates.expert_flops;
  seconds.exchange_forward = exposed(dispatch, shared * 2 / 3) + exposed(combine, shared / 3);
  seconds.exchange_backward =
      exposed(dispatch, shared / 3) + exposed(combine, shared * 2 / 3 + weights);
  return seconds;
}

PassSeconds SecondsOfEnds(const ModelSection& model, const LayerRange& range,
                          const MicroBatchShape& batch, const Machine& machine) {
  const CostRates& rates = *machine.rates;
  const Widths w(model);
  const double tokens = batch.tokens();
  const double table = w.vocab * w.hidden;
  PassSeconds seconds;
  if (range.first == 0) {
    const double bytes = tokens * 2 * w.hidden * machine.kept.activation;
    seconds.forward += bytes / rates.memory_bytes;
    seconds.backward_weights += bytes / rates.memory_bytes +
                                table * AccumulationBytes(machine.kept) / rates.accumulation_bytes;
  }
  if (!HasHead(model, range)) return seconds;
  const double product = tokens * 2 * table / rates.head_flops;
  // Logits are read twice and written once, in float32.
  const double loss = tokens * 12 * w.vocab / rates.memory_bytes;
  seconds.forward += product + loss;
  seconds.backward_input += product;
  seconds.backward_weights +=
      product + table * AccumulationBytes(machine.kept) / rates.accumulation_bytes;
  return seconds;
}

}  // namespace paceline::planning
