// The cluster file: machines to plan for, those one has or those one would rent. Published or
// measured figures alone; what the planner makes of them stands in cost_model.h.
// Invariant: a ClusterFile that Parse returned is valid as a whole.
// Threading: plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/run_file.h"

namespace paceline::planning {

struct ClusterSection {
  std::string name;  // required
  std::int64_t nodes = 1;
  std::int64_t slots_per_node = 1;  // devices
};

// One device. Peaks are without structured sparsity; 0: it has no such arithmetic.
struct DeviceSection {
  double memory_gib = 0;
  double reserved_gib = 0;  // what the driver, libraries and fragments take of it
  double float32_teraflops_per_second = 0;
  double bfloat16_teraflops_per_second = 0;
  double float8_teraflops_per_second = 0;
  double memory_gigabytes_per_second = 0;
};

// The share of a peak that kernels reach.
struct EfficiencySection {
  double matrix = 0;              // products of dense layers
  double experts = 0;             // grouped products of routed experts
  double attention_forward = 0;   // causal, of the attention format's peak
  double attention_backward = 0;  // of its own FLOPs, which are 2.5 times the forward's
  double memory = 0;              // element-wise and row-wise kernels, of the memory's rate
  // The share of communication that computation hides where the schedule offers any: 1 where
  // links copy without the compute units, 0 where one thread does both.
  double overlap = 1;
};

// What a worker on these machines computes in, and what it keeps.
struct ArithmeticSection {
  std::string matrix = "float32";      // "bfloat16", "float8": layers' products
  std::string head = "float32";        // the output matrix' products
  std::string attention = "float32";   // its two products
  double weight_bytes = 4;             // of a parameter: all copies in use
  double gradient_bytes = 4;           // of a parameter
  double moment_bytes = 8;             // of a parameter: both moments, and a master copy if apart
  double activation_bytes = 4;         // of a value of the residual stream and of attention
  double expert_activation_bytes = 4;  // of a value kept within a feed-forward part
  // What of a feed-forward part backward makes anew from its inputs, in place of keeping it:
  // norms, the activation's output, the experts' outputs.
  bool recompute_cheap = false;
};

struct LinkSection {
  double inside_node_gigabytes_per_second = 0;  // one way, a device
  double inside_node_latency_us = 0;
  double between_nodes_gigabytes_per_second = 0;
  double between_nodes_latency_us = 0;
};

// The all-to-all of expert layers.
struct ExchangeSection {
  double dispatch_bytes = 4;  // of a value
  double combine_bytes = 4;
  // Rates that an all-to-all reaches; 0: the link's.
  double inside_node_gigabytes_per_second = 0;
  double between_nodes_gigabytes_per_second = 0;
  std::int64_t nodes_per_token_max = 0;  // routing limited to so many nodes; 0: not limited
  bool one_copy_a_node = false;          // a token crosses to a node once, and is copied there
  // Rows a rank has room for, over the mean; 0: for the worst case, every token of the group.
  double receive_room = 0;
};

struct PriceSection {
  double slot_hour = 0;
  std::string currency = "EUR";
};

struct ReliabilitySection {
  double node_mtbf_hours = 0;                  // 0: not known, no goodput
  double restart_seconds = 0;                  // from a failure to the first step after it
  double copy_gigabytes_per_second = 0;        // a device to its host, while training waits
  double checkpoint_gigabytes_per_second = 0;  // of the whole cluster, to its file system
};

struct ClusterFile {
  ClusterSection cluster;
  DeviceSection device;
  EfficiencySection efficiency;
  ArithmeticSection arithmetic;
  LinkSection link;
  ExchangeSection exchange;
  PriceSection price;
  ReliabilitySection reliability;

  std::int64_t slots() const { return cluster.nodes * cluster.slots_per_node; }
};

// As ParseRunFile: all problems at once, each with file, line, key, value and what is allowed.
absl::StatusOr<ClusterFile> ParseClusterFile(const std::string& text, const std::string& file_name,
                                             const std::vector<Override>& overrides = {});
// kNotFound: there is no such file.
absl::StatusOr<ClusterFile> LoadClusterFile(const std::string& path,
                                            const std::vector<Override>& overrides = {});

}  // namespace paceline::planning
