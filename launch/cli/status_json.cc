#include "launch/cli/status_json.h"

#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>

#include "common/files.h"
#include "common/run_state.h"
#include "coordinator/core/stragglers.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

nlohmann::json Number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
}

nlohmann::json NodesJson(const v1::RunStatus& status) {
  nlohmann::json nodes = nlohmann::json::array();
  for (const v1::NodeStatus& node : status.nodes()) {
    nodes.push_back({{"name", node.name()},
                     {"host", node.host()},
                     {"slots", node.slots()},
                     {"alive", node.alive()},
                     {"metrics_address", node.metrics_address()}});
  }
  return nodes;
}

nlohmann::json RanksJson(const v1::RunStatus& status) {
  nlohmann::json ranks = nlohmann::json::array();
  std::map<std::int32_t, double> slow;
  for (const core::Straggler& straggler : core::StragglersOf(status)) {
    slow[straggler.rank] = straggler.ratio;
  }
  for (const v1::RankProgress& rank : status.ranks()) {
    const auto ratio = slow.find(rank.rank());
    ranks.push_back(
        {{"rank", rank.rank()},
         {"step", rank.step()},
         {"operation", rank.operation()},
         {"step_seconds", Number(rank.step_seconds())},
         {"compute_seconds", Number(rank.compute_seconds())},
         {"exposed_communication_seconds", Number(rank.exposed_communication_seconds())},
         {"pipeline_wait_seconds", Number(rank.pipeline_wait_seconds())},
         {"data_wait_seconds", Number(rank.data_wait_seconds())},
         {"memory_bytes", rank.memory_bytes()},
         {"straggler_ratio", ratio == slow.end() ? nullptr : Number(ratio->second)}});
  }
  return ranks;
}

nlohmann::json PhasesJson(const v1::RunStatus& status) {
  nlohmann::json seconds = nlohmann::json::object();
  for (const auto& [phase, name] : kRunPhases) seconds[name] = 0.0;
  for (const v1::PhaseTime& time : status.phases()) {
    for (const auto& [phase, name] : kRunPhases) {
      if (time.phase() == phase) seconds[name] = static_cast<double>(time.ms()) / 1000;
    }
  }
  return seconds;
}

nlohmann::json FailureJson(const v1::RankFailed& failure) {
  nlohmann::json lines = nlohmann::json::array();
  for (const std::string& line : failure.stderr_tail()) lines.push_back(line);
  return {{"rank", failure.rank()},
          {"error", failure.error()},
          {"exit_code", failure.exit_code()},
          {"signal", failure.signal()},
          {"stderr_tail", std::move(lines)}};
}

}  // namespace

nlohmann::json ToJson(const RunView& view) {
  const v1::RunStatus& status = view.status;
  nlohmann::json json = {
      {"run_id", status.run_id()},
      {"name", status.name()},
      {"member", status.member()},
      {"project", status.project()},
      {"state", view.State()},
      {"reason", status.reason()},
      {"live", view.live},
      {"generation", status.generation()},
      {"layout",
       {{"pipeline", status.layout().pipeline()},
        {"data", status.layout().data()},
        {"expert", status.layout().expert()},
        {"schedule", status.layout().schedule()},
        {"virtual_stages", status.layout().virtual_stages()},
        {"zero", status.layout().shard_optimizer() ? 1 : 0}}},
      {"step", status.step().step()},
      {"steps", status.steps_total()},
      {"tokens", status.tokens()},
      {"loss", status.has_step() ? Number(status.step().loss()) : nullptr},
      {"valid_loss", status.has_eval() ? Number(status.eval().valid_loss()) : nullptr},
      {"checkpoint", status.checkpoint()},
      {"checkpoint_step", status.checkpoint_step()},
      {"recoveries", status.recoveries()},
      {"lost_steps", status.lost_steps()},
      {"lost_tokens", status.lost_tokens()},
      {"cost", Number(status.cost())},
      {"currency", status.currency()},
      {"phase_seconds", PhasesJson(status)},
      {"retryable", status.retryable()},
      {"run_dir", status.run_dir()},
      {"nodes_asked", status.nodes_asked()},
      {"move_reason", status.move_reason()},
      {"nodes", NodesJson(status)},
      {"ranks", RanksJson(status)}};
  json["failure"] = status.has_failure() ? FailureJson(status.failure()) : nlohmann::json(nullptr);
  return json;
}

nlohmann::json SummaryOf(const RunFolder& folder, const RunView& view) {
  const absl::StatusOr<std::string> text = ReadFile(folder.Summary(), 1 << 20);
  if (text.ok()) {
    nlohmann::json summary = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (summary.is_object()) return summary;
  }
  const v1::RunStatus& status = view.status;
  const auto tokens = static_cast<double>(status.tokens());
  const std::int64_t committed = status.checkpoint_step();
  return {{"run_id", folder.run_id},
          {"state", view.State()},
          {"steps", committed},
          {"tokens", status.tokens()},
          {"loss", committed > 0 && status.step().step() == committed ? Number(status.step().loss())
                                                                      : nlohmann::json(nullptr)},
          {"valid_loss", status.has_eval() && status.eval().step() <= committed
                             ? Number(status.eval().valid_loss())
                             : nlohmann::json(nullptr)},
          {"tokens_per_second", nullptr},
          {"generations", status.generation()},
          {"recoveries", status.recoveries()},
          {"lost_steps", status.lost_steps()},
          {"lost_tokens", status.lost_tokens()},
          {"cost", Number(status.cost())},
          {"currency", status.currency()},
          {"cost_per_million_tokens",
           tokens > 0 ? Number(status.cost() / tokens * 1e6) : nlohmann::json(nullptr)},
          {"checkpoint", status.checkpoint()}};
}

void PrintJson(const nlohmann::json& object) {
  // Bytes that are no UTF-8 (a path, a model's output) must not throw.
  std::cout << object.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace)
            << std::endl;
}

}  // namespace paceline::cli
