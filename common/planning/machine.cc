#include "common/planning/machine.h"

#include <string>

namespace paceline::planning {
namespace {

constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;
constexpr double kGibi = 1024.0 * 1024.0 * 1024.0;
constexpr double kMicro = 1e-6;

double PeakFlops(const DeviceSection& device, const std::string& format) {
  if (format == "float8") return kTera * device.float8_teraflops_per_second;
  if (format == "bfloat16") return kTera * device.bfloat16_teraflops_per_second;
  return kTera * device.float32_teraflops_per_second;
}

double ExactSumBytes(const RunFile& run_file) {
  return run_file.train.reduction == "exact" ? 8 : 0;
}

}  // namespace

Machine MachineOf(const ClusterFile& cluster, const RunFile& run_file) {
  const ArithmeticSection& arithmetic = cluster.arithmetic;
  const EfficiencySection& efficiency = cluster.efficiency;
  const LinkSection& link = cluster.link;
  const ExchangeSection& exchange = cluster.exchange;
  const auto exchange_rate = [](double given, const LinkRate& of_link) {
    return LinkRate{of_link.latency_s, given > 0 ? kGiga * given : of_link.bytes_per_s};
  };
  CostRates rates;
  rates.matrix_flops = efficiency.matrix * PeakFlops(cluster.device, arithmetic.matrix);
  rates.expert_flops = efficiency.experts * PeakFlops(cluster.device, arithmetic.matrix);
  rates.head_flops = efficiency.matrix * PeakFlops(cluster.device, arithmetic.head);
  const double attention = PeakFlops(cluster.device, arithmetic.attention);
  rates.attention_forward_flops = efficiency.attention_forward * attention;
  rates.attention_backward_flops = efficiency.attention_backward * attention;
  rates.memory_bytes = efficiency.memory * kGiga * cluster.device.memory_gigabytes_per_second;
  rates.accumulation_bytes = rates.memory_bytes;
  rates.optimizer_bytes = rates.memory_bytes;
  rates.overlap = efficiency.overlap;
  rates.inside_node = {kMicro * link.inside_node_latency_us,
                       kGiga * link.inside_node_gigabytes_per_second};
  rates.between_nodes = {kMicro * link.between_nodes_latency_us,
                         kGiga * link.between_nodes_gigabytes_per_second};
  rates.reduction_inside_node = rates.inside_node;
  rates.reduction_between_nodes = rates.between_nodes;
  rates.exchange_inside_node =
      exchange_rate(exchange.inside_node_gigabytes_per_second, rates.inside_node);
  rates.exchange_between_nodes =
      exchange_rate(exchange.between_nodes_gigabytes_per_second, rates.between_nodes);

  Machine machine;
  machine.nodes = cluster.cluster.nodes;
  machine.slots_per_node = cluster.cluster.slots_per_node;
  machine.memory_bytes = kGibi * (cluster.device.memory_gib - cluster.device.reserved_gib);
  machine.kept.weight = arithmetic.weight_bytes;
  machine.kept.gradient = arithmetic.gradient_bytes;
  machine.kept.exact_sum = ExactSumBytes(run_file);
  machine.kept.moments = arithmetic.moment_bytes;
  machine.kept.activation = arithmetic.activation_bytes;
  machine.kept.expert_activation = arithmetic.expert_activation_bytes;
  machine.kept.dispatch = exchange.dispatch_bytes;
  machine.kept.combine = exchange.combine_bytes;
  machine.kept.cast = arithmetic.matrix == "float8";
  machine.kept.recompute_cheap = arithmetic.recompute_cheap;
  machine.kept.checkpoint_copy = false;  // a device's checkpoint is copied to its host
  machine.kept.receive_room = exchange.receive_room;
  machine.nodes_per_token_max = exchange.nodes_per_token_max;
  machine.one_copy_a_node = exchange.one_copy_a_node;
  machine.rates = rates;
  return machine;
}

Machine CpuMachine(const RunFile& run_file) {
  Machine machine;
  machine.nodes = run_file.launch.nodes;
  machine.slots_per_node = run_file.launch.slots_per_node;
  machine.kept.exact_sum = ExactSumBytes(run_file);
  return machine;
}

}  // namespace paceline::planning
