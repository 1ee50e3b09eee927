#include "coordinator/metrics/coordinator_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <map>
#include <string>

#include "common/run_state.h"

namespace paceline {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

const Histogram::BucketBoundaries kDecideBuckets = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1};
const Histogram::BucketBoundaries kAppendBuckets = {1e-4, 3e-4, 1e-3, 3e-3, 0.01,
                                                    0.03, 0.1,  0.3,  1,    3};
const Histogram::BucketBoundaries kRecoveryBuckets = {0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300};

template <typename Builder>
auto& Make(Builder builder, prometheus::Registry& registry, const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

}  // namespace

struct CoordinatorMetrics::Impl {
  prometheus::Registry registry;
  Gauge& epoch = Make(BuildGauge(), registry, "paceline_coordinator_epoch",
                      "Epoch that leads: one reign of one process.")
                     .Add({});
  Gauge& leads = Make(BuildGauge(), registry, "paceline_coordinator_leads",
                      "1: this process leads; 0: it stands by.")
                     .Add({});
  Gauge& start = Make(BuildGauge(), registry, "paceline_coordinator_start_time_seconds",
                      "When this process started, since the Unix epoch.")
                     .Add({});
  Gauge& lease =
      Make(BuildGauge(), registry, "paceline_coordinator_lease_renewed_timestamp_seconds",
           "When the coordinator last renewed its lease, since the Unix epoch; 0: it "
           "stands by.")
          .Add({});
  Gauge& queue = Make(BuildGauge(), registry, "paceline_coordinator_queue_entries",
                      "Events and questions that waited when the loop last took some.")
                     .Add({});
  Histogram& decide = Make(BuildHistogram(), registry, "paceline_coordinator_decide_seconds",
                           "Time of one decision of the core.")
                          .Add({}, kDecideBuckets);
  Histogram& append =
      Make(BuildHistogram(), registry, "paceline_coordinator_journal_append_seconds",
           "Time to make one group of facts durable, fdatasync included.")
          .Add({}, kAppendBuckets);
  Counter& facts =
      Make(BuildCounter(), registry, "paceline_coordinator_facts_total", "Facts journaled.")
          .Add({});
  Counter& generations = Make(BuildCounter(), registry, "paceline_generations_started_total",
                              "Generations started, of all runs.")
                             .Add({});
  // All of them from the start, so that the first failure of a kind is an increase.
  Family<Counter>& failures =
      Make(BuildCounter(), registry, "paceline_failures_total",
           "What went wrong, of all runs, by what it befell and by its cause.");
  std::map<v1::FailureCause, Counter*> failures_by_cause = {
      {v1::FAILURE_CAUSE_WORKER_EXIT, Failure(v1::FAILURE_CAUSE_WORKER_EXIT)},
      {v1::FAILURE_CAUSE_WORKER_ERROR, Failure(v1::FAILURE_CAUSE_WORKER_ERROR)},
      {v1::FAILURE_CAUSE_STALL, Failure(v1::FAILURE_CAUSE_STALL)},
      {v1::FAILURE_CAUSE_CORRUPT_STATE, Failure(v1::FAILURE_CAUSE_CORRUPT_STATE)},
      {v1::FAILURE_CAUSE_NODE_LOST, Failure(v1::FAILURE_CAUSE_NODE_LOST)},
      {v1::FAILURE_CAUSE_PEER_LOST, Failure(v1::FAILURE_CAUSE_PEER_LOST)},
      {v1::FAILURE_CAUSE_CHECKPOINT, Failure(v1::FAILURE_CAUSE_CHECKPOINT)},
      {v1::FAILURE_CAUSE_REPLICAS_DIFFER, Failure(v1::FAILURE_CAUSE_REPLICAS_DIFFER)},
  };
  Counter& failed_tests = failures.Add({{"scope", "node"}, {"cause", "self_test"}});
  Family<Histogram>& recovery =
      Make(BuildHistogram(), registry, "paceline_recovery_seconds",
           "Time of each stage of a recovery, from a failure to the next step done.");
  Histogram& detect = recovery.Add({{"stage", "detect"}}, kRecoveryBuckets);
  Histogram& fence = recovery.Add({{"stage", "fence"}}, kRecoveryBuckets);
  Histogram& regroup = recovery.Add({{"stage", "regroup"}}, kRecoveryBuckets);
  Histogram& restore = recovery.Add({{"stage", "restore"}}, kRecoveryBuckets);
  Histogram& first_step = recovery.Add({{"stage", "first_step"}}, kRecoveryBuckets);
  Counter& drains = Make(BuildCounter(), registry, "paceline_nodes_drained_total",
                         "Nodes that an operator drained.")
                        .Add({});
  Counter& quarantines = Make(BuildCounter(), registry, "paceline_nodes_quarantined_total",
                              "Nodes that the coordinator drained for their failures.")
                             .Add({});
  Counter& commits = Make(BuildCounter(), registry, "paceline_checkpoints_committed_total",
                          "Checkpoints committed, of all runs.")
                         .Add({});
  Counter& commit_bytes =
      Make(BuildCounter(), registry, "paceline_checkpoint_committed_bytes_total",
           "Bytes of the checkpoints committed, of all runs.")
          .Add({});
  Counter& nodes_joined =
      Make(BuildCounter(), registry, "paceline_nodes_joined_total", "Nodes that joined.").Add({});
  Counter& nodes_left =
      Make(BuildCounter(), registry, "paceline_nodes_left_total", "Nodes that left or were lost.")
          .Add({});
  Family<Counter>& charged =
      Make(BuildCounter(), registry, "paceline_charged_node_seconds_total",
           "Node-seconds charged, by the member that pays; empty: nobody, the node was idle.");
  Family<Gauge>& commit_times =
      Make(BuildGauge(), registry, "paceline_run_checkpoint_committed_timestamp_seconds",
           "When the run's latest checkpoint was committed, since the Unix epoch.");
  std::map<std::string, Gauge*> commit_time_of_run;  // of runs that have not ended

  Counter* Failure(v1::FailureCause cause) {
    return &failures.Add({{"scope", ScopeName(cause)}, {"cause", CauseName(cause)}});
  }
};

CoordinatorMetrics::CoordinatorMetrics(double start_seconds) : impl_(std::make_unique<Impl>()) {
  impl_->start.Set(start_seconds);
}

CoordinatorMetrics::~CoordinatorMetrics() = default;

void CoordinatorMetrics::QueueDepth(std::size_t entries) {
  impl_->queue.Set(static_cast<double>(entries));
}

void CoordinatorMetrics::Watch(std::uint64_t epoch) {
  impl_->epoch.Set(static_cast<double>(epoch));
}

void CoordinatorMetrics::Lead(std::uint64_t epoch) {
  impl_->epoch.Set(static_cast<double>(epoch));
  impl_->leads.Set(1);
}

void CoordinatorMetrics::LeaseRenewed(std::int64_t wall_ms) {
  impl_->lease.Set(static_cast<double>(wall_ms) / 1000);
}

void CoordinatorMetrics::Decided(double seconds) { impl_->decide.Observe(seconds); }

void CoordinatorMetrics::Appended(const std::vector<v1::Fact>& facts, double seconds) {
  impl_->append.Observe(seconds);
  impl_->facts.Increment(static_cast<double>(facts.size()));
  for (const v1::Fact& fact : facts) Count(fact);
}

void CoordinatorMetrics::Count(const v1::Fact& fact) {
  switch (fact.body_case()) {
    case v1::Fact::kNodeJoined:
      impl_->nodes_joined.Increment();
      break;
    case v1::Fact::kNodeLeft:
      impl_->nodes_left.Increment();
      break;
    case v1::Fact::kGenerationStarted:
      impl_->generations.Increment();
      break;
    case v1::Fact::kGenerationEnded:
      if (fact.generation_ended().has_failure()) {
        const auto counter =
            impl_->failures_by_cause.find(fact.generation_ended().failure().cause());
        if (counter != impl_->failures_by_cause.end()) counter->second->Increment();
      }
      break;
    case v1::Fact::kNodeFailed:
      impl_->failed_tests.Increment();
      break;
    case v1::Fact::kFirstStepDone:
      if (fact.first_step_done().has_recovery()) Recovered(fact.first_step_done().recovery());
      break;
    case v1::Fact::kNodeDrained:
      (fact.node_drained().quarantined() ? impl_->quarantines : impl_->drains).Increment();
      break;
    case v1::Fact::kCheckpointCommitted:
      impl_->commits.Increment();
      impl_->commit_bytes.Increment(
          static_cast<double>(std::max<std::int64_t>(0, fact.checkpoint_committed().bytes())));
      CommittedAt(fact.checkpoint_committed().key().run_id(), fact.at_ms());
      break;
    case v1::Fact::kRunEnded:
      RunGone(fact.run_ended().run_id());
      break;
    case v1::Fact::kChargePosted: {
      const v1::ChargePosted& charge = fact.charge_posted();
      const auto milliseconds = static_cast<double>(charge.to_ms() - charge.from_ms());
      impl_->charged.Add({{"member", charge.member()}}).Increment(milliseconds / 1000);
      break;
    }
    default:
      break;
  }
}

void CoordinatorMetrics::Recovered(const v1::RecoveryTimes& times) {
  impl_->detect.Observe(static_cast<double>(times.detect_ms()) / 1000);
  impl_->fence.Observe(static_cast<double>(times.fence_ms()) / 1000);
  impl_->regroup.Observe(static_cast<double>(times.regroup_ms()) / 1000);
  impl_->restore.Observe(static_cast<double>(times.restore_ms()) / 1000);
  impl_->first_step.Observe(static_cast<double>(times.first_step_ms()) / 1000);
}

void CoordinatorMetrics::CommittedAt(const std::string& run_id, std::int64_t at_ms) {
  Gauge*& time = impl_->commit_time_of_run[run_id];
  if (time == nullptr) time = &impl_->commit_times.Add({{"run_id", run_id}});
  time->Set(static_cast<double>(at_ms) / 1000);
}

void CoordinatorMetrics::RunGone(const std::string& run_id) {
  const auto time = impl_->commit_time_of_run.find(run_id);
  if (time == impl_->commit_time_of_run.end()) return;
  impl_->commit_times.Remove(time->second);
  impl_->commit_time_of_run.erase(time);
}

std::vector<prometheus::MetricFamily> CoordinatorMetrics::Collect() const {
  return impl_->registry.Collect();
}

}  // namespace paceline
