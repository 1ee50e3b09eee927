#include <cmath>
#include <cstdint>
#include <string>

#include "common/pipeline_schedule.h"
#include "common/run_file_findings.h"
#include "common/run_file_schema.h"

namespace paceline::run_file {
namespace {

// Flat arrays of parameters are indexed by 64-bit integers and held in float64 while reducing.
constexpr double kMaxParameters = 1e15;
// Tokens of a whole run are counted in 64-bit integers.
constexpr double kMaxTokens = 4e18;

std::string Number(std::int64_t value) { return std::to_string(value); }

void CheckAttention(const ModelSection& model, Findings& findings) {
  if (findings.AreGood(
          {{"model", "hidden_size"}, {"model", "num_attention_heads"}, {"model", "head_dim"}}) &&
      model.head_dim == 0) {
    findings.Report("model", "head_dim",
                    "is missing, and its default, hidden_size / num_attention_heads, is " +
                        Number(model.hidden_size) + " / " + Number(model.num_attention_heads) +
                        ": no whole number of at least 2; give an even head_dim");
  } else if (findings.AreGood({{"model", "head_dim"}}) && model.head_dim % 2 != 0) {
    findings.Report("model", "head_dim",
                    "must be even (rotary embedding turns pairs), is " + Number(model.head_dim) +
                        "; try " + Number(model.head_dim + 1));
  }
  if (findings.AreGood({{"model", "num_attention_heads"}, {"model", "num_key_value_heads"}}) &&
      model.num_attention_heads % model.num_key_value_heads != 0) {
    findings.Report("model", "num_key_value_heads",
                    "must divide num_attention_heads = " + Number(model.num_attention_heads));
  }
}

void CheckExperts(const ModelSection& model, Findings& findings) {
  const bool sparse =
      findings.AreGood({{"model", "n_routed_experts"}}) && model.n_routed_experts > 0;
  if (sparse && findings.AreGood({{"model", "num_experts_per_tok"}})) {
    if (model.num_experts_per_tok < 1) {
      findings.Report("model", "num_experts_per_tok",
                      "must be at least 1 when n_routed_experts is above 0");
    } else if (model.num_experts_per_tok > model.n_routed_experts) {
      findings.Report("model", "num_experts_per_tok",
                      "must be at most n_routed_experts = " + Number(model.n_routed_experts));
    }
  }
  if (sparse && findings.AreGood({{"model", "moe_intermediate_size"}}) &&
      model.moe_intermediate_size < 1) {
    findings.Report("model", "moe_intermediate_size",
                    "must be at least 1 when n_routed_experts is above 0");
  }
  if (!findings.AreGood({{"model", "n_routed_experts"},
                         {"model", "first_k_dense_replace"},
                         {"model", "num_hidden_layers"}})) {
    return;
  }
  if (model.first_k_dense_replace > model.num_hidden_layers) {
    findings.Report("model", "first_k_dense_replace",
                    "must be at most num_hidden_layers = " + Number(model.num_hidden_layers));
  } else if ((!sparse || model.first_k_dense_replace > 0) &&
             findings.AreGood({{"model", "intermediate_size"}}) && model.intermediate_size < 1) {
    findings.Report("model", "intermediate_size",
                    "must be at least 1: the model has dense layers (n_routed_experts = 0, or "
                    "first_k_dense_replace above 0)");
  }
}

void CheckModelSize(const ModelSection& model, Findings& findings) {
  if (!findings.AreGood({{"model", "vocab_size"},
                         {"model", "hidden_size"},
                         {"model", "num_hidden_layers"},
                         {"model", "num_attention_heads"},
                         {"model", "num_key_value_heads"},
                         {"model", "head_dim"},
                         {"model", "intermediate_size"},
                         {"model", "n_routed_experts"},
                         {"model", "n_shared_experts"},
                         {"model", "moe_intermediate_size"}})) {
    return;
  }
  const double hidden = static_cast<double>(model.hidden_size);
  const double layers = static_cast<double>(model.num_hidden_layers);
  const double attention =
      2.0 * hidden * static_cast<double>(model.head_dim) *
      static_cast<double>(model.num_attention_heads + model.num_key_value_heads);
  const double experts = static_cast<double>(model.n_routed_experts + model.n_shared_experts);
  const double mlp = 3.0 * hidden *
                     (static_cast<double>(model.intermediate_size) +
                      experts * static_cast<double>(model.moe_intermediate_size));
  const double bound =
      2.0 * static_cast<double>(model.vocab_size) * hidden + layers * (attention + mlp);
  if (bound > kMaxParameters) {
    findings.Report("model", "hidden_size",
                    "the model would have about " + RealText(std::round(bound)) +
                        " parameters; at most 1e15 are allowed");
  }
}

// Parameters lie at multiples of 16 elements in the workers' flat arrays, without padding between
// matrices that are multiplied as one.
void CheckHiddenSize(const ModelSection& model, Findings& findings) {
  constexpr std::int64_t kMultiple = 16;
  if (!findings.AreGood({{"model", "hidden_size"}}) || model.hidden_size % kMultiple == 0) return;
  findings.Report("model", "hidden_size",
                  "must be a multiple of " + Number(kMultiple) + "; try " +
                      Number((model.hidden_size / kMultiple + 1) * kMultiple));
}

void CheckBatch(const RunFile& run_file, Findings& findings) {
  if (!findings.AreGood(
          {{"layout", "pipeline"}, {"launch", "nodes"}, {"launch", "slots_per_node"}})) {
    return;
  }
  const std::int64_t world = run_file.WorldSize();
  const std::string ranks = Number(world) + " ranks (nodes = " + Number(run_file.launch.nodes) +
                            " x slots_per_node = " + Number(run_file.launch.slots_per_node) + ")";
  if (world % run_file.layout.pipeline != 0) {
    findings.Report("layout", "pipeline", "must divide the " + ranks);
    return;
  }
  const std::int64_t data_parallel = run_file.DataParallel();
  if (findings.AreGood({{"layout", "expert"}}) && data_parallel % run_file.layout.expert != 0) {
    findings.Report(
        "layout", "expert",
        "must divide the data parallel size " + Number(data_parallel) + " of the " + ranks);
  }
  if (!findings.AreGood({{"train", "global_batch_size"}, {"train", "micro_batch_size"}})) return;
  const std::int64_t batch = run_file.train.global_batch_size;
  const std::int64_t unit = run_file.train.micro_batch_size * data_parallel;
  if (batch % unit == 0) return;
  const std::int64_t below = batch / unit * unit;
  const std::int64_t above = below + unit;
  const bool take_below = below > 0 && batch - below <= above - batch;
  findings.Report("train", "global_batch_size",
                  "must be a multiple of micro_batch_size x data parallel = " +
                      Number(run_file.train.micro_batch_size) + " x " + Number(data_parallel) +
                      " = " + Number(unit) + " on " + ranks + "; the nearest that fits is " +
                      Number(take_below ? below : above));
}

void CheckSchedule(const TrainSection& train, Findings& findings) {
  if (findings.AreGood({{"train", "learning_rate"}, {"train", "min_learning_rate"}}) &&
      train.min_learning_rate > train.learning_rate) {
    findings.Report("train", "min_learning_rate",
                    "must be at most learning_rate = " + RealText(train.learning_rate));
  }
  if (findings.AreGood({{"train", "steps"}, {"train", "warmup_steps"}})) {
    if (train.warmup_steps >= train.steps) {
      findings.Report("train", "warmup_steps", "must be below steps = " + Number(train.steps));
    } else if (train.lr_schedule == "wsd" &&
               findings.AreGood({{"train", "decay_fraction"}, {"train", "lr_schedule"}}) &&
               static_cast<double>(train.warmup_steps) +
                       train.decay_fraction * static_cast<double>(train.steps) >
                   static_cast<double>(train.steps)) {
      findings.Report("train", "decay_fraction",
                      "the decay must fit behind the warm-up: warmup_steps + decay_fraction x "
                      "steps must be at most steps = " +
                          Number(train.steps));
    }
  }
  if (findings.AreGood(
          {{"train", "steps"}, {"train", "global_batch_size"}, {"train", "sequence_length"}}) &&
      static_cast<double>(train.steps) * static_cast<double>(train.global_batch_size) *
              static_cast<double>(train.sequence_length) >
          kMaxTokens) {
    findings.Report("train", "steps",
                    "steps x global_batch_size x sequence_length must be at most 4e18 tokens");
  }
}

void CheckExpertParallel(const RunFile& run_file, Findings& findings) {
  if (!findings.AreGood({{"layout", "expert"}, {"model", "n_routed_experts"}})) return;
  const std::int64_t experts = run_file.model.n_routed_experts;
  if (run_file.layout.expert == 1 || (experts > 0 && experts % run_file.layout.expert == 0)) return;
  findings.Report("layout", "expert",
                  "must divide [model] n_routed_experts = " + Number(experts) +
                      (experts == 0 ? ", a dense model; give 1" : ""));
}

void CheckPipeline(const RunFile& run_file, Findings& findings) {
  if (!findings.AreGood({{"layout", "pipeline"},
                         {"layout", "schedule"},
                         {"layout", "virtual_stages"},
                         {"model", "num_hidden_layers"}})) {
    return;
  }
  const std::int64_t segments = run_file.layout.pipeline * run_file.layout.virtual_stages;
  if (segments > run_file.model.num_hidden_layers) {
    findings.Report("layout", "pipeline",
                    "pipeline x virtual_stages = " + Number(segments) +
                        " is more than num_hidden_layers = " +
                        Number(run_file.model.num_hidden_layers) + ": every part needs a layer");
    return;
  }
  if (run_file.layout.pipeline > 1 && run_file.model.tie_word_embeddings) {
    findings.Report("layout", "pipeline",
                    "must be 1 with [model] tie_word_embeddings = true: the first and the last "
                    "stage would share one matrix");
    return;
  }
  if (!findings.AreGood({{"train", "global_batch_size"},
                         {"train", "micro_batch_size"},
                         {"launch", "nodes"},
                         {"launch", "slots_per_node"}})) {
    return;
  }
  const absl::Status fits =
      CheckPipelineShape({.schedule = run_file.layout.schedule,
                          .stages = static_cast<int>(run_file.layout.pipeline),
                          .virtual_stages = static_cast<int>(run_file.layout.virtual_stages),
                          .micro_batches = static_cast<int>(run_file.MicroBatchesPerRank())});
  if (!fits.ok()) findings.Report("layout", "schedule", std::string(fits.message()));
}

// The budget is how long a failure may go unnoticed: what bounds work must leave it that time.
void CheckTimeouts(const FailureSection& failure, Findings& findings) {
  if (!findings.AreGood({{"failure", "budget_ms"}})) return;
  struct Limit {
    const char* key;
    std::int64_t value;
    std::int64_t budgets;  // that it must exceed
    const char* why;
  };
  const Limit limits[] = {
      {"startup_ms", failure.startup_ms, 1, "a node may be silent for that long meanwhile"},
      {"collective_ms", failure.collective_ms, 2,
       "the coordinator, which can name who is at fault, needs a budget and three steps"},
      {"evaluation_ms", failure.evaluation_ms, 1, "a step may stand still for that long"},
      {"checkpoint_ms", failure.checkpoint_ms, 1, "a step may stand still for that long"},
  };
  for (const Limit& limit : limits) {
    const std::int64_t least = limit.budgets * failure.budget_ms;
    if (!findings.AreGood({{"failure", limit.key}}) || limit.value == 0 || limit.value > least) {
      continue;
    }
    const std::string budget = Number(failure.budget_ms);
    const std::string times = Number(limit.budgets) + " x ";
    findings.Report(
        "failure", limit.key,
        "must exceed " +
            (limit.budgets == 1 ? "budget_ms = " + budget
                                : times + "budget_ms = " + times + budget + " = " + Number(least)) +
            ": " + limit.why + "; 0 derives it from budget_ms");
  }
}

// Only a process that mpirun has started is a rank of an MPI job.
void CheckTransport(const LaunchSection& launch, Findings& findings) {
  if (!findings.AreGood({{"launch", "launcher"}, {"launch", "transport"}})) return;
  if (launch.transport != "mpi" || launch.launcher == "mpi") return;
  findings.Report("launch", "transport",
                  "needs launcher = \"mpi\", which is " + QuotedText(launch.launcher) +
                      "; launcher = \"mpi\" goes with any transport");
}

void CheckNodes(const LaunchSection& launch, Findings& findings) {
  if (!findings.AreGood({{"launch", "nodes"},
                         {"launch", "spares"},
                         {"launch", "min_nodes"},
                         {"launch", "launcher"}})) {
    return;
  }
  if (launch.min_nodes > launch.nodes) {
    findings.Report("launch", "min_nodes",
                    "must be at most nodes = " + Number(launch.nodes) +
                        ", since a run never goes on with more; spares do not count. Lower it as "
                        "well, or give 0: half of nodes, rounded up");
  } else if (launch.launcher == "mpi" && launch.MinNodes() < launch.nodes) {
    findings.Report("launch", "min_nodes",
                    "must be nodes = " + Number(launch.nodes) +
                        " with launcher = \"mpi\": a job that loses a rank is over");
  }
  if (launch.launcher == "mpi" && launch.spares > 0) {
    findings.Report("launch", "spares",
                    "must be 0 with launcher = \"mpi\": a job that loses a rank is over");
  }
}

}  // namespace

void CheckTogether(const RunFile& run_file, Findings& findings) {
  CheckAttention(run_file.model, findings);
  CheckExperts(run_file.model, findings);
  CheckModelSize(run_file.model, findings);
  CheckHiddenSize(run_file.model, findings);
  CheckBatch(run_file, findings);
  CheckSchedule(run_file.train, findings);
  CheckExpertParallel(run_file, findings);
  CheckPipeline(run_file, findings);
  CheckTransport(run_file.launch, findings);
  CheckNodes(run_file.launch, findings);
  CheckTimeouts(run_file.failure, findings);
}

}  // namespace paceline::run_file
