#include "worker/telemetry/agent_metrics.h"

#include <prometheus/metric_family.h>
#include <sys/resource.h>

#include <utility>

namespace paceline {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

void AddSample(MetricFamily& family, Labels labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  if (family.type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(std::move(metric));
}

MetricFamily Family(const char* name, const char* help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

// One metric of every rank for which it is present.
struct RankMetric {
  const char* name;
  const char* help;
  MetricType type;
  double (*value)(const RankView&);
  bool (*present)(const RankView&) = [](const RankView&) { return true; };
};

// Long: a table.
const RankMetric kRankMetrics[] = {
    {"paceline_rank_generation", "Generation that the rank trains in.", MetricType::Gauge,
     [](const RankView& rank) { return static_cast<double>(rank.key.generation()); }},
    {"paceline_rank_step", "Last optimizer step completed, counted from the run's start.",
     MetricType::Gauge,
     [](const RankView& rank) { return static_cast<double>(rank.progress.step()); }},
    {"paceline_rank_steps_total", "Steps completed in this generation.", MetricType::Counter,
     [](const RankView& rank) { return static_cast<double>(rank.steps_done); }},
    {"paceline_rank_last_step_timestamp_seconds", "Unix time at which the last step was reported.",
     MetricType::Gauge,
     [](const RankView& rank) { return static_cast<double>(rank.last_step_at_ms) * 1e-3; },
     [](const RankView& rank) { return rank.last_step_at_ms > 0; }},
    {"paceline_rank_step_seconds_total", "Time spent in steps.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.step_seconds(); }},
    {"paceline_rank_compute_seconds_total", "Time in steps spent computing.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.compute_seconds(); }},
    {"paceline_rank_exposed_communication_seconds_total",
     "Time in steps spent waiting for collectives that no computation hid.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.exposed_communication_seconds(); }},
    {"paceline_rank_pipeline_wait_seconds_total",
     "Time in steps spent waiting for another pipeline stage.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.pipeline_wait_seconds(); }},
    {"paceline_rank_data_wait_seconds_total", "Time in steps spent waiting for training data.",
     MetricType::Counter, [](const RankView& rank) { return rank.progress.data_wait_seconds(); }},
    {"paceline_rank_control_wait_seconds_total",
     "Time in which the step thread waited for its agent.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.control_wait_seconds(); }},
    {"paceline_rank_tokens_total", "Tokens that this rank has trained on.", MetricType::Counter,
     [](const RankView& rank) { return static_cast<double>(rank.progress.tokens()); }},
    {"paceline_rank_checkpoint_bytes_total", "Bytes of checkpoint parts written.",
     MetricType::Counter,
     [](const RankView& rank) { return static_cast<double>(rank.progress.checkpoint_bytes()); }},
    {"paceline_rank_checkpoint_write_seconds_total",
     "Time the checkpoint thread spent writing parts.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.checkpoint_write_seconds(); }},
    {"paceline_rank_checkpoint_stall_seconds_total",
     "Time that training stood still for checkpoints.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.checkpoint_stall_seconds(); }},
    {"paceline_rank_last_checkpoint_timestamp_seconds",
     "Unix time at which the rank's last checkpoint part was durable.", MetricType::Gauge,
     [](const RankView& rank) {
       return static_cast<double>(rank.progress.checkpoint_at_ms()) * 1e-3;
     },
     [](const RankView& rank) { return rank.progress.checkpoint_at_ms() > 0; }},
    {"paceline_rank_snapshots_total", "Snapshots of the state taken in memory.",
     MetricType::Counter,
     [](const RankView& rank) { return static_cast<double>(rank.progress.snapshots()); }},
    {"paceline_rank_snapshots_skipped_total",
     "Snapshots left out because the one before was still being digested.", MetricType::Counter,
     [](const RankView& rank) { return static_cast<double>(rank.progress.snapshots_skipped()); }},
    {"paceline_rank_snapshot_stall_seconds_total", "Time that training stood still for snapshots.",
     MetricType::Counter,
     [](const RankView& rank) { return rank.progress.snapshot_stall_seconds(); }},
    {"paceline_rank_last_snapshot_timestamp_seconds", "Unix time of the rank's last snapshot.",
     MetricType::Gauge,
     [](const RankView& rank) {
       return static_cast<double>(rank.progress.snapshot_at_ms()) * 1e-3;
     },
     [](const RankView& rank) { return rank.progress.snapshot_at_ms() > 0; }},
    {"paceline_rank_operations_entered_total", "Collective operations begun.", MetricType::Counter,
     [](const RankView& rank) { return static_cast<double>(rank.progress.operations_entered()); }},
    {"paceline_rank_operations_left_total", "Collective operations ended.", MetricType::Counter,
     [](const RankView& rank) { return static_cast<double>(rank.progress.operations_left()); }},
    {"paceline_rank_resident_memory_bytes", "Resident memory of the worker.", MetricType::Gauge,
     [](const RankView& rank) { return static_cast<double>(rank.progress.memory_bytes()); }},
    {"paceline_rank_cpu_seconds_total", "User and system time of the worker.", MetricType::Counter,
     [](const RankView& rank) { return rank.progress.cpu_seconds(); }},
};

// By layer, from the ranks that report them.
void AddExpertLoads(const AgentView& view, std::vector<MetricFamily>& families) {
  MetricFamily most =
      Family("paceline_rank_expert_load_max_over_mean",
             "Tokens of a sparse layer's most loaded expert over the mean, at the last step.",
             MetricType::Gauge);
  MetricFamily dead =
      Family("paceline_rank_dead_experts",
             "Experts of a sparse layer without a token at the last step.", MetricType::Gauge);
  for (const RankView& rank : view.ranks) {
    for (const v1::ExpertLoad& load : rank.progress.expert_loads()) {
      const Labels labels = {{"run_id", rank.key.run_id()},
                             {"rank", std::to_string(rank.progress.rank())},
                             {"layer", std::to_string(load.layer())}};
      AddSample(most, labels, load.max_over_mean());
      AddSample(dead, labels, static_cast<double>(load.dead()));
    }
  }
  if (most.metric.empty()) return;
  families.push_back(std::move(most));
  families.push_back(std::move(dead));
}

double CpuSeconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

// Long: a table.
std::vector<MetricFamily> AgentMetricFamilies(const AgentView& view, const std::string& host,
                                              const std::string& version) {
  std::vector<MetricFamily> families;
  const auto add = [&](const char* name, const char* help, MetricType type, double value,
                       Labels labels = {}) {
    families.push_back(Family(name, help, type));
    AddSample(families.back(), std::move(labels), value);
  };
  const AgentCounters& counters = view.counters;
  add("paceline_agent_info", "The agent; 1.", MetricType::Gauge, 1,
      {{"node", view.node}, {"host", host}, {"version", version}});
  add("paceline_agent_slots", "Places for ranks on this node.", MetricType::Gauge, view.slots);
  add("paceline_agent_workers", "Worker processes that live.", MetricType::Gauge, view.workers);
  add("paceline_agent_warm_workers", "Of them, processes kept ready for a rank whose worker dies.",
      MetricType::Gauge, view.warm_workers);
  add("paceline_agent_registered", "1 while a coordinator has this node registered, else 0.",
      MetricType::Gauge, view.registered ? 1 : 0);
  add("paceline_agent_coordinator_epoch", "Highest epoch of a coordinator seen.", MetricType::Gauge,
      static_cast<double>(view.epoch));
  add("paceline_agent_registrations_total", "Registrations with a coordinator.",
      MetricType::Counter, static_cast<double>(counters.registrations));
  add("paceline_agent_stale_messages_total",
      "Messages refused because their epoch or generation is over.", MetricType::Counter,
      static_cast<double>(counters.stale_messages));
  add("paceline_agent_record_errors_total", "Lines that could not be written to a run's records.",
      MetricType::Counter, static_cast<double>(counters.record_errors));
  add("paceline_agent_worker_starts_total", "Workers started.", MetricType::Counter,
      static_cast<double>(counters.worker_starts));
  add("paceline_agent_worker_reuses_total",
      "Workers that a generation took over from the one before.", MetricType::Counter,
      static_cast<double>(counters.worker_reuses));
  add("paceline_agent_snapshot_copies_total", "Copies taken of other nodes' snapshots.",
      MetricType::Counter, static_cast<double>(counters.snapshot_copies));
  add("paceline_agent_snapshot_copy_bytes_total", "Bytes of state in them.", MetricType::Counter,
      static_cast<double>(counters.snapshot_copy_bytes));
  add("paceline_agent_snapshot_copy_failures_total", "Copies that failed and were tried again.",
      MetricType::Counter, static_cast<double>(counters.snapshot_copy_failures));
  if (counters.snapshot_copied_at_ms > 0) {
    add("paceline_agent_last_snapshot_copy_timestamp_seconds", "Unix time of the last copy.",
        MetricType::Gauge, static_cast<double>(counters.snapshot_copied_at_ms) * 1e-3);
  }
  add("paceline_agent_snapshot_fetches_total",
      "Snapshots fetched from other nodes for ranks to begin from.", MetricType::Counter,
      static_cast<double>(counters.snapshot_fetches));
  add("paceline_agent_snapshot_fetch_bytes_total", "Bytes of state in them.", MetricType::Counter,
      static_cast<double>(counters.snapshot_fetch_bytes));
  add("paceline_agent_snapshot_fetch_failures_total", "Fetches that failed: the rank did as well.",
      MetricType::Counter, static_cast<double>(counters.snapshot_fetch_failures));
  add("paceline_agent_warm_worker_uses_total", "Ranks that began in a process kept warm.",
      MetricType::Counter, static_cast<double>(counters.warm_uses));
  families.push_back(Family("paceline_agent_worker_exits_total",
                            "Workers that have ended: finished (the rank had no more to do), "
                            "ended (with their generation), failed, or warm (they had no rank).",
                            MetricType::Counter));
  AddSample(families.back(), {{"reason", "finished"}},
            static_cast<double>(counters.workers_finished));
  AddSample(families.back(), {{"reason", "ended"}}, static_cast<double>(counters.workers_ended));
  AddSample(families.back(), {{"reason", "warm"}}, static_cast<double>(counters.warm_ended));
  AddSample(families.back(), {{"reason", "failed"}}, static_cast<double>(counters.workers_failed));
  add("process_cpu_seconds_total", "User and system time of the agent.", MetricType::Counter,
      CpuSeconds());

  for (const RankMetric& metric : kRankMetrics) {
    MetricFamily family = Family(metric.name, metric.help, metric.type);
    for (const RankView& rank : view.ranks) {
      if (!metric.present(rank)) continue;
      AddSample(family,
                {{"run_id", rank.key.run_id()}, {"rank", std::to_string(rank.progress.rank())}},
                metric.value(rank));
    }
    if (!family.metric.empty()) families.push_back(std::move(family));
  }
  AddExpertLoads(view, families);
  return families;
}

}  // namespace paceline
