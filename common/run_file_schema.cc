#include "common/run_file_schema.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

namespace paceline::run_file {
namespace {

constexpr std::int64_t kMaxSteps = std::int64_t{1} << 40;
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kMaxLimitMs = 604'800'000;  // a week

void AddModel(FieldList& fields, ModelSection& model) {
  fields.Section("model");
  fields.AddRequired("vocab_size", &model.vocab_size, IntegerRule{2, std::int64_t{1} << 31});
  fields.AddRequired("hidden_size", &model.hidden_size, IntegerRule{1, kMaxWidth});
  fields.AddRequired("num_hidden_layers", &model.num_hidden_layers, IntegerRule{1, 4096});
  fields.AddRequired("num_attention_heads", &model.num_attention_heads, IntegerRule{1, 4096});
  fields.Add("num_key_value_heads", &model.num_key_value_heads, IntegerRule{1, 4096});
  fields.Add("head_dim", &model.head_dim, IntegerRule{2, 4096});
  fields.Add("intermediate_size", &model.intermediate_size, IntegerRule{0, kMaxWidth});
  fields.Add("n_routed_experts", &model.n_routed_experts, IntegerRule{0, 65536});
  fields.Add("n_shared_experts", &model.n_shared_experts, IntegerRule{0, 1024});
  fields.Add("num_experts_per_tok", &model.num_experts_per_tok, IntegerRule{0, 1024});
  fields.Add("moe_intermediate_size", &model.moe_intermediate_size, IntegerRule{0, kMaxWidth});
  fields.Add("first_k_dense_replace", &model.first_k_dense_replace, IntegerRule{0, 4096});
  fields.Add("scoring_func", &model.scoring_func, ChoiceRule{{"softmax", "sigmoid"}, 2});
  fields.Add("norm_topk_prob", &model.norm_topk_prob, FlagRule{});
  fields.Add("routed_scaling_factor", &model.routed_scaling_factor, RealRule{0, 1e6, true});
  fields.Add("router_bias_update_rate", &model.router_bias_update_rate, RealRule{0, 1});
  fields.Add("rope_theta", &model.rope_theta, RealRule{1, 1e12});
  fields.Add("rms_norm_eps", &model.rms_norm_eps, RealRule{0, 1, true});
  fields.Add("initializer_range", &model.initializer_range, RealRule{0, 10, true});
  fields.Add("tie_word_embeddings", &model.tie_word_embeddings, FlagRule{});
}

void AddTrain(FieldList& fields, TrainSection& train) {
  fields.Section("train");
  fields.AddRequired("sequence_length", &train.sequence_length, IntegerRule{1, kMaxWidth});
  fields.AddRequired("global_batch_size", &train.global_batch_size, IntegerRule{1, 1 << 24});
  fields.AddRequired("micro_batch_size", &train.micro_batch_size, IntegerRule{1, 1 << 16});
  fields.AddRequired("steps", &train.steps, IntegerRule{1, kMaxSteps});
  fields.AddRequired("learning_rate", &train.learning_rate, RealRule{0, 100, true});
  fields.Add("min_learning_rate", &train.min_learning_rate, RealRule{0, 100});
  fields.Add("lr_schedule", &train.lr_schedule, ChoiceRule{{"cosine", "constant", "wsd"}, 3});
  fields.Add("warmup_steps", &train.warmup_steps, IntegerRule{0, kMaxSteps});
  fields.Add("decay_fraction", &train.decay_fraction, RealRule{0, 1, true});
  fields.Add("weight_decay", &train.weight_decay, RealRule{0, 10});
  fields.Add("adam_beta1", &train.adam_beta1, RealRule{0, 1, false, true});
  fields.Add("adam_beta2", &train.adam_beta2, RealRule{0, 1, false, true});
  fields.Add("adam_eps", &train.adam_eps, RealRule{1e-30, 1});
  fields.Add("clip_grad_norm", &train.clip_grad_norm, RealRule{0, 1e9});
  fields.Add("eval_interval_steps", &train.eval_interval_steps, IntegerRule{0, kMaxSteps});
  fields.Add("eval_batches", &train.eval_batches, IntegerRule{1, 1 << 20});
  fields.Add("reduction", &train.reduction, ChoiceRule{{"exact", "fast"}, 2});
  fields.Add("on_nonfinite", &train.on_nonfinite, ChoiceRule{{"stop", "skip"}, 2});
}

void AddPlacement(FieldList& fields, RunFile& run_file) {
  fields.Section("layout");
  fields.Add("pipeline", &run_file.layout.pipeline, IntegerRule{1, 4096});
  fields.Add("schedule", &run_file.layout.schedule,
             ChoiceRule{{"1f1b", "interleaved", "zero-bubble"}, 3});
  fields.Add("virtual_stages", &run_file.layout.virtual_stages, IntegerRule{1, 64});
  fields.Add("expert", &run_file.layout.expert, IntegerRule{1, 65536});
  fields.Add("zero", &run_file.layout.zero, IntegerRule{0, 1});
  fields.Section("checkpoint");
  fields.Add("dir", &run_file.checkpoint.dir, PathRule{});
  fields.Add("init", &run_file.checkpoint.init, PathRule{.resolve = true, .may_be_empty = true});
  fields.Add("interval_steps", &run_file.checkpoint.interval_steps, IntegerRule{0, kMaxSteps});
  fields.Add("keep", &run_file.checkpoint.keep, IntegerRule{1, 1'000'000});
  fields.Section("failure");
  fields.Add("budget_ms", &run_file.failure.budget_ms, IntegerRule{100, 3'600'000});
  fields.Add("snapshot_interval_steps", &run_file.failure.snapshot_interval_steps,
             IntegerRule{0, kMaxSteps});
  fields.Add("max_restarts", &run_file.failure.max_restarts, IntegerRule{0, 1'000'000});
  fields.Add("warm_workers", &run_file.failure.warm_workers, IntegerRule{0, 256});
  fields.Add("startup_ms", &run_file.failure.startup_ms, IntegerRule{0, kMaxLimitMs});
  fields.Add("collective_ms", &run_file.failure.collective_ms, IntegerRule{0, kMaxLimitMs});
  fields.Add("evaluation_ms", &run_file.failure.evaluation_ms, IntegerRule{0, kMaxLimitMs});
  fields.Add("checkpoint_ms", &run_file.failure.checkpoint_ms, IntegerRule{0, kMaxLimitMs});
  fields.Section("launch");
  fields.Add("nodes", &run_file.launch.nodes, IntegerRule{1, 100'000});
  fields.Add("slots_per_node", &run_file.launch.slots_per_node, IntegerRule{1, 256});
  fields.Add("spares", &run_file.launch.spares, IntegerRule{0, 1000});
  fields.Add("min_nodes", &run_file.launch.min_nodes, IntegerRule{0, 100'000});
  fields.Add("device", &run_file.launch.device, ChoiceRule{{"cpu", "cuda"}, 1});
  const std::size_t built = PACELINE_HAVE_MPI != 0 ? 2 : 1;
  fields.Add("launcher", &run_file.launch.launcher, ChoiceRule{{"local", "mpi", "slurm"}, built});
  fields.Add("transport", &run_file.launch.transport, ChoiceRule{{"gloo", "mpi", "nccl"}, built});
  fields.Section("rates");
  fields.Add("currency", &run_file.rates.currency, CurrencyRule{});
  fields.Add("slot_hour", &run_file.rates.slot_hour, RealRule{0, 1e6});
}

std::string Bound(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string ChoicesText(const std::vector<std::string_view>& choices) {
  std::string text;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) text += i + 1 == choices.size() ? " or " : ", ";
    text += "\"" + std::string(choices[i]) + "\"";
  }
  return text;
}

struct AllowedTextOf {
  std::string operator()(const IntegerRule& rule) const {
    return "an integer from " + std::to_string(rule.minimum) + " to " +
           std::to_string(rule.maximum);
  }
  std::string operator()(const RealRule& rule) const {
    return "a number " + std::string(rule.minimum_excluded ? "above " : "of at least ") +
           Bound(rule.minimum) + (rule.maximum_excluded ? " and below " : " and at most ") +
           Bound(rule.maximum);
  }
  std::string operator()(const FlagRule&) const { return "true or false"; }
  std::string operator()(const NameRule&) const {
    return "1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit";
  }
  std::string operator()(const CurrencyRule&) const { return "three capital letters, as \"EUR\""; }
  std::string operator()(const PathRule&) const { return "a path in quotes"; }
  std::string operator()(const ChoiceRule& rule) const { return ChoicesText(rule.choices); }
  std::string operator()(const SourcesRule&) const {
    return "a path in quotes, or a list of {path = \"...\", weight = 1.0}";
  }
};

// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours.
std::size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t cost = a[i - 1] == b[j - 1] ? 0 : 1;
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + cost});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

}  // namespace

std::vector<Field> FieldsOf(RunFile& run_file) {
  FieldList fields;
  fields.Section("run");
  fields.AddRequired("name", &run_file.run.name, NameRule{});
  fields.Add("member", &run_file.run.member, NameRule{});
  fields.Add("project", &run_file.run.project, NameRule{});
  // TOML's integers are signed, so a seed has 63 bits.
  fields.Add("seed", &run_file.run.seed, IntegerRule{0, std::numeric_limits<std::int64_t>::max()});
  AddModel(fields, run_file.model);
  fields.Section("data");
  fields.AddRequired("train", &run_file.data.train, SourcesRule{});
  fields.Add("valid", &run_file.data.valid, SourcesRule{.may_be_empty = true});
  AddTrain(fields, run_file.train);
  AddPlacement(fields, run_file);
  return fields.Take();
}

std::string AllowedText(const Rule& rule) { return std::visit(AllowedTextOf{}, rule); }

std::string RealText(double value) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  std::string text(buffer, error == std::errc() ? end : buffer);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

std::string QuotedText(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04X", static_cast<unsigned>(c));
      text += escape;
    } else {
      text += c;
    }
  }
  return text + "\"";
}

std::string Nearest(std::string_view word, const std::vector<std::string>& candidates) {
  if (word.size() > 64) return "";
  std::size_t best = std::max<std::size_t>(2, word.size() / 3) + 1;
  std::string nearest;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = EditDistance(word, candidate);
    // A word of which nothing is left is not near.
    if (distance < best && distance < std::max(word.size(), candidate.size())) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace paceline::run_file
