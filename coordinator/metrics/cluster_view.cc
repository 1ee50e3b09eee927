#include "coordinator/metrics/cluster_view.h"

#include <prometheus/metric_family.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/run_state.h"
#include "coordinator/core/stragglers.h"

namespace paceline {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// Families in the order of their first sample.
class Families {
 public:
  void Gauge(const char* name, const char* help, Labels labels, double value) {
    ClientMetric& metric = Sample(name, help, MetricType::Gauge, std::move(labels));
    metric.gauge.value = value;
  }
  void Counter(const char* name, const char* help, Labels labels, double value) {
    ClientMetric& metric = Sample(name, help, MetricType::Counter, std::move(labels));
    metric.counter.value = value;
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  ClientMetric& Sample(const char* name, const char* help, MetricType type, Labels labels) {
    const auto [position, added] = positions_.try_emplace(name, families_.size());
    if (added) {
      MetricFamily family;
      family.name = name;
      family.help = help;
      family.type = type;
      families_.push_back(std::move(family));
    }
    ClientMetric metric;
    metric.label = std::move(labels);
    std::vector<ClientMetric>& samples = families_[position->second].metric;
    samples.push_back(std::move(metric));
    return samples.back();
  }

  std::map<std::string, std::size_t> positions_;
  std::vector<MetricFamily> families_;
};

void AddRun(const v1::RunStatus& run, Families& families) {
  const Labels id = {{"run_id", run.run_id()}};
  families.Gauge("paceline_run_info", "Who trains what; join it by run_id.",
                 {{"run_id", run.run_id()},
                  {"name", run.name()},
                  {"member", run.member()},
                  {"project", run.project()}},
                 1);
  for (const auto& [state, name] : kRunStates) {
    families.Gauge("paceline_run_state", "1 for the state that the run is in, 0 for the others.",
                   {{"run_id", run.run_id()}, {"state", name}}, run.state() == state ? 1 : 0);
  }
  families.Gauge("paceline_run_generation", "The run's latest generation.", id,
                 static_cast<double>(run.generation()));
  families.Gauge("paceline_run_planned_steps", "Optimizer steps that the run is to make.", id,
                 static_cast<double>(run.steps_total()));
  families.Gauge("paceline_run_ranks", "Ranks of the run's layout.", id,
                 static_cast<double>(run.layout().pipeline()) * run.layout().data());
  families.Gauge("paceline_run_checkpoint_step", "Step of the last committed checkpoint; 0: none.",
                 id, static_cast<double>(run.checkpoint_step()));
  if (run.has_step()) {
    families.Gauge("paceline_run_step", "Last completed optimizer step that is known.", id,
                   static_cast<double>(run.step().step()));
    families.Gauge("paceline_run_loss", "Training loss of that step in nats a token.", id,
                   run.step().loss());
    families.Gauge("paceline_run_grad_norm", "Norm of that step's gradient before clipping.", id,
                   run.step().grad_norm());
    families.Gauge("paceline_run_learning_rate", "Learning rate of that step.", id,
                   run.step().learning_rate());
    families.Gauge("paceline_run_last_step_seconds", "Duration of that step.", id,
                   run.step().step_seconds());
  }
  if (run.has_eval()) {
    families.Gauge("paceline_run_valid_loss", "Loss on held-out text in nats a token.", id,
                   run.eval().valid_loss());
  }
  if (!HasEnded(run.state())) {
    for (const core::Straggler& straggler : core::StragglersOf(run)) {
      families.Gauge("paceline_run_straggler_compute_ratio",
                     "Time in computation for a token over the median of the rank's stage, of "
                     "ranks for which it is 1.2 or more.",
                     {{"run_id", run.run_id()}, {"rank", std::to_string(straggler.rank)}},
                     straggler.ratio);
    }
  }
  // Gauges: a rollback takes tokens from the lineage, and a new coordinator knows of the tokens and
  // charges since the last fact only when agents tell it again. Only what is journaled is a
  // counter.
  families.Gauge("paceline_run_tokens", "Tokens of the run's lineage.", id,
                 static_cast<double>(run.tokens()));
  families.Gauge("paceline_run_cost", "Money that the run has cost so far.",
                 {{"run_id", run.run_id()}, {"currency", run.currency()}}, run.cost());
  families.Counter("paceline_run_lost_tokens_total", "Tokens whose training was rolled back.", id,
                   static_cast<double>(run.lost_tokens()));
  families.Counter("paceline_run_lost_steps_total", "Steps that were rolled back.", id,
                   static_cast<double>(run.lost_steps()));
  std::map<v1::RunPhase, std::int64_t> spent_ms;
  for (const v1::PhaseTime& time : run.phases()) spent_ms[time.phase()] = time.ms();
  for (const auto& [phase, name] : kRunPhases) {
    families.Counter("paceline_run_phase_seconds_total", "What the run's time went to.",
                     {{"run_id", run.run_id()}, {"phase", name}},
                     static_cast<double>(spent_ms[phase]) / 1000);
  }
  families.Counter("paceline_run_recoveries_total",
                   "Generations that began because another failed.", id,
                   static_cast<double>(run.recoveries()));
}

}  // namespace

std::vector<MetricFamily> ClusterFamilies(const ClusterView& view) {
  Families families;
  double slots = 0;
  for (const v1::NodeStatus& node : view.nodes) slots += node.slots();
  families.Gauge("paceline_coordinator_nodes", "Nodes that hold a lease.", {},
                 static_cast<double>(view.nodes.size()));
  families.Gauge("paceline_coordinator_slots", "Slots of the nodes that hold a lease.", {}, slots);
  for (const auto& [state, name] : kRunStates) {
    const auto count =
        std::count_if(view.runs.begin(), view.runs.end(),
                      [state = state](const v1::RunStatus& run) { return run.state() == state; });
    families.Gauge("paceline_coordinator_runs", "Runs by state.", {{"state", name}},
                   static_cast<double>(count));
  }
  auto ended = static_cast<std::size_t>(
      std::count_if(view.runs.begin(), view.runs.end(),
                    [](const v1::RunStatus& run) { return HasEnded(run.state()); }));
  for (const v1::RunStatus& run : view.runs) {
    if (HasEnded(run.state()) && ended-- > ClusterView::kEndedRunsMax) continue;
    AddRun(run, families);
  }
  return families.Take();
}

std::string DiscoveryJson(const ClusterView& view, const std::string& coordinator_address) {
  std::map<std::uint64_t, std::string> run_of_node;
  for (const v1::RunStatus& run : view.runs) {
    if (HasEnded(run.state())) continue;
    for (const v1::NodeStatus& node : run.nodes()) run_of_node[node.node_id()] = run.run_id();
  }
  nlohmann::json targets = nlohmann::json::array();
  targets.push_back(
      {{"targets", {coordinator_address}}, {"labels", {{"component", "coordinator"}}}});
  for (const v1::NodeStatus& node : view.nodes) {
    if (node.metrics_address().empty()) continue;
    nlohmann::json labels = {{"component", "agent"}, {"node", node.name()}};
    const auto run = run_of_node.find(node.node_id());
    if (run != run_of_node.end()) labels["run_id"] = run->second;
    targets.push_back({{"targets", {node.metrics_address()}}, {"labels", labels}});
  }
  return targets.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace paceline
