// The run file: what a user asks for, and all that a run is. One file for every launcher.
// Invariant: a RunFile that Parse returned is valid as a whole (types, ranges, and that the
// parts fit each other); what depends on the machine (does the corpus exist?) is not its matter.
// Threading: plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace paceline {

struct RunSection {
  std::string name;  // required; letters, digits, '-', '_', '.'
  std::string member = "local";
  std::string project = "default";
  std::uint64_t seed = 1;
};

// Fields carry the names of Hugging Face's configs.
struct ModelSection {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;  // default: num_attention_heads
  std::int64_t head_dim = 0;             // default: hidden_size / num_attention_heads
  std::int64_t intermediate_size = 0;
  std::int64_t n_routed_experts = 0;  // 0: a dense model
  std::int64_t n_shared_experts = 0;
  std::int64_t num_experts_per_tok = 0;
  std::int64_t moe_intermediate_size = 0;
  std::int64_t first_k_dense_replace = 0;  // the first k layers are dense
  std::string scoring_func = "softmax";    // or "sigmoid"
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1.0;
  double router_bias_update_rate = 0.001;  // 0: no balancing bias
  double rope_theta = 10000.0;
  double rms_norm_eps = 1e-5;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;

  bool IsSparse(std::int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace;
  }
};

struct DataSource {
  std::string path;
  double weight = 1.0;
};

struct DataSection {
  std::vector<DataSource> train;  // one or more
  std::vector<DataSource> valid;  // may be empty: no evaluation
};

struct TrainSection {
  std::int64_t sequence_length = 0;
  std::int64_t global_batch_size = 0;  // sequences a step
  std::int64_t micro_batch_size = 0;
  std::int64_t steps = 0;
  double learning_rate = 0;
  double min_learning_rate = 0;
  std::string lr_schedule = "cosine";  // or "constant", "wsd"
  std::int64_t warmup_steps = 0;
  double decay_fraction = 0.1;  // of the steps, for "wsd"
  double weight_decay = 0.1;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.95;
  double adam_eps = 1e-8;
  double clip_grad_norm = 1.0;           // 0: off
  std::int64_t eval_interval_steps = 0;  // 0: only at the end
  std::int64_t eval_batches = 16;        // global batches of held-out text an evaluation
  std::string reduction = "exact";       // or "fast"
  std::string on_nonfinite = "stop";     // or "skip"
};

struct LayoutSection {
  std::int64_t pipeline = 1;
  std::string schedule = "1f1b";    // or "interleaved", "zero-bubble"
  std::int64_t virtual_stages = 1;  // segments a stage, for "interleaved"
  std::int64_t expert = 1;
  std::int64_t zero = 0;  // 1: optimizer state sharded over the data-parallel ranks
};

struct CheckpointSection {
  std::string dir = "checkpoints";  // relative: to the run's folder
  std::string init;                 // weights to start from, optimizer fresh
  std::int64_t interval_steps = 0;  // 0: only at the end
  std::int64_t keep = 3;
};

struct FailureSection {
  std::int64_t budget_ms = 5000;
  std::int64_t snapshot_interval_steps = 10;  // of the state in memory; 0: none
  std::int64_t max_restarts = 100;  // after failures of workers; a lost node's do not count
  // Processes that a node keeps ready for ranks whose worker dies, at most one a rank of its own.
  std::int64_t warm_workers = 1;
  // 0: derived from the budget (common/timeouts.h).
  std::int64_t startup_ms = 0;
  std::int64_t collective_ms = 0;
  std::int64_t evaluation_ms = 0;
  std::int64_t checkpoint_ms = 0;
};

struct LaunchSection {
  std::int64_t nodes = 1;
  std::int64_t slots_per_node = 1;
  std::int64_t spares = 0;         // nodes beyond `nodes` that wait to take a dead one's place
  std::int64_t min_nodes = 0;      // with fewer the run waits; 0: MinNodes() derives it
  std::string device = "cpu";      // or "cuda"
  std::string launcher = "local";  // or "mpi", "slurm"
  std::string transport = "gloo";  // or "mpi" (launcher "mpi" alone), "nccl"

  // `min_nodes`; where it is 0 half of `nodes`, rounded up, and of an MPI job, whose ranks are all
  // there or it is over, all of them.
  std::int64_t MinNodes() const;
};

struct RatesSection {
  std::string currency = "EUR";
  double slot_hour = 0.0;
};

struct RunFile {
  RunSection run;
  ModelSection model;
  DataSection data;
  TrainSection train;
  LayoutSection layout;
  CheckpointSection checkpoint;
  FailureSection failure;
  LaunchSection launch;
  RatesSection rates;

  std::int64_t WorldSize() const { return launch.nodes * launch.slots_per_node; }
  std::int64_t DataParallel() const { return WorldSize() / layout.pipeline; }
  std::int64_t MicroBatchesPerRank() const {
    return train.global_batch_size / (train.micro_batch_size * DataParallel());
  }
};

// A value given on the command line: "train.steps=100".
struct Override {
  std::string text;         // "key.path=VALUE", VALUE in TOML, a bare word is a string
  std::string base_folder;  // what a relative path in it resolves against
};

// Parses and validates `text`. Relative paths resolve against `folder` (data, init; the
// checkpoint folder stays relative to the run's). Every problem found is reported, one a line:
//   FILE:LINE: [section] key = value: what is wrong, and what is allowed.
// kInvalidArgument: any of them. Unknown keys are errors with the nearest known key.
absl::StatusOr<RunFile> ParseRunFile(const std::string& text, const std::string& file_name,
                                     const std::string& folder,
                                     const std::vector<Override>& overrides);

// Reads and parses `path`. kNotFound: there is no such file.
absl::StatusOr<RunFile> LoadRunFile(const std::string& path,
                                    const std::vector<Override>& overrides);

// Every key with its value, defaults included. ParseRunFile of it gives the same RunFile, bit
// for bit.
std::string ToToml(const RunFile& run_file);

}  // namespace paceline
