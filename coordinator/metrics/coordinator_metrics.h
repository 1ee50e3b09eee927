// What the coordinator measures of itself: the journal, the queue, the decisions, and counts of
// what was journaled since this process started.
// Invariant: every name is in docs/metrics.md, and `promtool check metrics` has no complaint.
// Threading: QueueDepth, Decided and Appended on the loop; the others on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "paceline/v1/journal.pb.h"

namespace prometheus {
struct MetricFamily;
}

namespace paceline {

class CoordinatorMetrics {
 public:
  // It stands by until Lead.
  explicit CoordinatorMetrics(double start_seconds);
  ~CoordinatorMetrics();

  void QueueDepth(std::size_t entries);
  void Decided(double seconds);
  // One Append, of these facts.
  void Appended(const std::vector<v1::Fact>& facts, double seconds);

  // The epoch that leads, as a standby sees it.
  void Watch(std::uint64_t epoch);
  void Lead(std::uint64_t epoch);
  void LeaseRenewed(std::int64_t wall_ms);

  std::vector<prometheus::MetricFamily> Collect() const;

 private:
  void Count(const v1::Fact& fact);
  void Recovered(const v1::RecoveryTimes& times);
  void CommittedAt(const std::string& run_id, std::int64_t at_ms);
  void RunGone(const std::string& run_id);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
