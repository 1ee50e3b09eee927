#include "common/planning/cluster_file.h"

#include <string_view>
#include <utility>

#include "common/run_file_schema.h"
#include "common/settings_reader.h"
#include "common/status.h"

namespace paceline::planning {
namespace {

using run_file::ChoiceRule;
using run_file::CurrencyRule;
using run_file::FieldList;
using run_file::Findings;
using run_file::FlagRule;
using run_file::IntegerRule;
using run_file::NameRule;
using run_file::RealRule;

constexpr RealRule kAboveZero{.minimum = 0, .maximum = 1e9, .minimum_excluded = true};
constexpr RealRule kFromZero{.minimum = 0, .maximum = 1e9};
constexpr RealRule kShare{.minimum = 0, .maximum = 1, .minimum_excluded = true};
constexpr RealRule kBytes{.minimum = 0, .maximum = 64, .minimum_excluded = true};

void AddDevice(FieldList& fields, ClusterFile& file) {
  DeviceSection& device = file.device;
  fields.Section("device");
  fields.AddRequired("memory_gib", &device.memory_gib, kAboveZero);
  fields.Add("reserved_gib", &device.reserved_gib, kFromZero);
  fields.Add("float32_teraflops_per_second", &device.float32_teraflops_per_second, kFromZero);
  fields.Add("bfloat16_teraflops_per_second", &device.bfloat16_teraflops_per_second, kFromZero);
  fields.Add("float8_teraflops_per_second", &device.float8_teraflops_per_second, kFromZero);
  fields.AddRequired("memory_gigabytes_per_second", &device.memory_gigabytes_per_second,
                     kAboveZero);
  EfficiencySection& efficiency = file.efficiency;
  fields.Section("efficiency");
  fields.AddRequired("matrix", &efficiency.matrix, kShare);
  fields.AddRequired("experts", &efficiency.experts, kShare);
  fields.AddRequired("attention_forward", &efficiency.attention_forward, kShare);
  fields.AddRequired("attention_backward", &efficiency.attention_backward, kShare);
  fields.AddRequired("memory", &efficiency.memory, kShare);
  fields.Add("overlap", &efficiency.overlap, RealRule{.minimum = 0, .maximum = 1});
}

void AddArithmetic(FieldList& fields, ArithmeticSection& arithmetic) {
  const ChoiceRule formats{{"float32", "bfloat16", "float8"}, 3};
  fields.Section("arithmetic");
  fields.Add("matrix", &arithmetic.matrix, formats);
  fields.Add("head", &arithmetic.head, formats);
  fields.Add("attention", &arithmetic.attention, formats);
  fields.Add("weight_bytes", &arithmetic.weight_bytes, kBytes);
  fields.Add("gradient_bytes", &arithmetic.gradient_bytes, kBytes);
  fields.Add("moment_bytes", &arithmetic.moment_bytes, kBytes);
  fields.Add("activation_bytes", &arithmetic.activation_bytes, kBytes);
  fields.Add("expert_activation_bytes", &arithmetic.expert_activation_bytes, kBytes);
  fields.Add("recompute_cheap", &arithmetic.recompute_cheap, FlagRule{});
}

std::vector<run_file::Field> FieldsOf(ClusterFile& file) {
  FieldList fields;
  fields.Section("cluster");
  fields.AddRequired("name", &file.cluster.name, NameRule{});
  fields.AddRequired("nodes", &file.cluster.nodes, IntegerRule{1, 100'000});
  fields.AddRequired("slots_per_node", &file.cluster.slots_per_node, IntegerRule{1, 256});
  AddDevice(fields, file);
  AddArithmetic(fields, file.arithmetic);
  LinkSection& link = file.link;
  fields.Section("link");
  fields.AddRequired("inside_node_gigabytes_per_second", &link.inside_node_gigabytes_per_second,
                     kAboveZero);
  fields.Add("inside_node_latency_us", &link.inside_node_latency_us, kFromZero);
  fields.AddRequired("between_nodes_gigabytes_per_second", &link.between_nodes_gigabytes_per_second,
                     kAboveZero);
  fields.Add("between_nodes_latency_us", &link.between_nodes_latency_us, kFromZero);
  ExchangeSection& exchange = file.exchange;
  fields.Section("exchange");
  fields.Add("dispatch_bytes", &exchange.dispatch_bytes, kBytes);
  fields.Add("combine_bytes", &exchange.combine_bytes, kBytes);
  fields.Add("inside_node_gigabytes_per_second", &exchange.inside_node_gigabytes_per_second,
             kFromZero);
  fields.Add("between_nodes_gigabytes_per_second", &exchange.between_nodes_gigabytes_per_second,
             kFromZero);
  fields.Add("nodes_per_token_max", &exchange.nodes_per_token_max, IntegerRule{0, 100'000});
  fields.Add("one_copy_a_node", &exchange.one_copy_a_node, FlagRule{});
  fields.Add("receive_room", &exchange.receive_room, RealRule{0, 65536});
  fields.Section("price");
  fields.Add("slot_hour", &file.price.slot_hour, RealRule{0, 1e6});
  fields.Add("currency", &file.price.currency, CurrencyRule{});
  fields.Section("reliability");
  fields.Add("node_mtbf_hours", &file.reliability.node_mtbf_hours, kFromZero);
  fields.Add("restart_seconds", &file.reliability.restart_seconds, kFromZero);
  fields.Add("copy_gigabytes_per_second", &file.reliability.copy_gigabytes_per_second, kFromZero);
  fields.Add("checkpoint_gigabytes_per_second", &file.reliability.checkpoint_gigabytes_per_second,
             kFromZero);
  return fields.Take();
}

double PeakOf(const DeviceSection& device, const std::string& format) {
  if (format == "float8") return device.float8_teraflops_per_second;
  if (format == "bfloat16") return device.bfloat16_teraflops_per_second;
  return device.float32_teraflops_per_second;
}

void CheckTogether(const ClusterFile& file, Findings& findings) {
  const auto check_format = [&](std::string_view key, const std::string& format) {
    if (!findings.AreGood({{"arithmetic", key}}) || PeakOf(file.device, format) > 0) return;
    findings.Report("arithmetic", key,
                    "needs [device] " + format + "_teraflops_per_second above 0");
  };
  check_format("matrix", file.arithmetic.matrix);
  check_format("head", file.arithmetic.head);
  check_format("attention", file.arithmetic.attention);
  if (findings.AreGood({{"device", "memory_gib"}, {"device", "reserved_gib"}}) &&
      file.device.reserved_gib >= file.device.memory_gib) {
    findings.Report("device", "reserved_gib",
                    "must be below memory_gib = " + run_file::RealText(file.device.memory_gib));
  }
  const auto check_rate = [&](std::string_view key, double rate) {
    if (!findings.AreGood({{"reliability", "node_mtbf_hours"}, {"reliability", key}})) return;
    if (file.reliability.node_mtbf_hours > 0 && !(rate > 0)) {
      findings.Report("reliability", key, "must be above 0 where node_mtbf_hours is");
    }
  };
  check_rate("copy_gigabytes_per_second", file.reliability.copy_gigabytes_per_second);
  check_rate("checkpoint_gigabytes_per_second", file.reliability.checkpoint_gigabytes_per_second);
}

}  // namespace

absl::StatusOr<ClusterFile> ParseClusterFile(const std::string& text, const std::string& file_name,
                                             const std::vector<Override>& overrides) {
  ASSIGN_OR_RETURN(const toml::table document,
                   run_file::ParseToml(text, file_name, "cluster file"));
  ClusterFile result;
  run_file::SettingsReader reader(file_name, /*folder=*/"/", FieldsOf(result));
  reader.TakeFile(document);
  for (const Override& given : overrides) reader.TakeOverride(given);
  reader.ReadValues();
  CheckTogether(result, reader.findings());
  RETURN_IF_ERROR(reader.findings().ToStatus());
  return result;
}

absl::StatusOr<ClusterFile> LoadClusterFile(const std::string& path,
                                            const std::vector<Override>& overrides) {
  ASSIGN_OR_RETURN(const std::string text, run_file::ReadSettingsText(path, "cluster file"));
  return ParseClusterFile(text, path, overrides);
}

}  // namespace paceline::planning
