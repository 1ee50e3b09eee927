// What the cost model knows of the machines: rates that are reached, and what a rank keeps in its
// memory. A cluster file gives one (published peaks times efficiencies), a calibration another
// (rates measured here).
// Threading: plain values.
#pragma once

#include <cstdint>
#include <optional>

#include "common/planning/cluster_file.h"
#include "common/run_file.h"

namespace paceline::planning {

struct LinkRate {
  double latency_s = 0;
  double bytes_per_s = 0;

  double Seconds(double bytes) const { return latency_s + bytes / bytes_per_s; }
};

// How unevenly equal passes run: standard deviations of the logarithm of their time.
struct Spread {
  double pass = 0;  // of each pass by itself
  double step = 0;  // of a rank's speed, which stays through a step and is another one later
};

// All in FLOP/s or bytes/s of one rank.
struct CostRates {
  double matrix_flops = 0;  // dense layers' products
  double expert_flops = 0;  // grouped products of routed experts
  double head_flops = 0;    // the output matrix
  double attention_forward_flops = 0;
  double attention_backward_flops = 0;
  double memory_bytes = 0;        // element-wise and row-wise kernels
  double accumulation_bytes = 0;  // a micro-batch's gradients added to the step's
  double optimizer_bytes = 0;     // AdamW
  double overlap = 1;             // the share of communication that computation can hide
  Spread spread;
  LinkRate inside_node;  // of a message, and of a gather
  LinkRate between_nodes;
  LinkRate reduction_inside_node;  // of gradients summed and spread
  LinkRate reduction_between_nodes;
  LinkRate exchange_inside_node;  // of an all-to-all
  LinkRate exchange_between_nodes;
};

// Bytes a parameter or a value, and what is kept.
struct KeptBytes {
  double weight = 4;
  double gradient = 4;
  double exact_sum = 0;  // a parameter, where gradients are summed in float64
  double moments = 8;
  double activation = 4;
  double expert_activation = 4;
  double dispatch = 4;
  double combine = 4;
  bool cast = false;             // products take another format than activations have
  bool recompute_cheap = false;  // see ArithmeticSection
  bool checkpoint_copy = true;   // in the same memory as the rest
  double receive_room = 0;       // see ExchangeSection
};

struct Machine {
  std::int64_t nodes = 1;
  std::int64_t slots_per_node = 1;
  double memory_bytes = 0;  // of a rank; 0: not known
  KeptBytes kept;
  std::int64_t nodes_per_token_max = 0;
  bool one_copy_a_node = false;
  std::optional<CostRates> rates;  // none: memory can be told, time cannot

  std::int64_t slots() const { return nodes * slots_per_node; }
};

// `run_file` says whether gradients are summed in float64.
Machine MachineOf(const ClusterFile& cluster, const RunFile& run_file);

// This build's worker on CPUs: float32, rows of every expert kept at the worst case. Without
// rates.
Machine CpuMachine(const RunFile& run_file);

}  // namespace paceline::planning
