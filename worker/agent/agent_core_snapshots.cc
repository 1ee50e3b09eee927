// AgentCore's fourth part: the snapshots that the node keeps, of its own ranks and of others'.
#include <algorithm>
#include <utility>

#include "common/run_file.h"
#include "common/timeouts.h"
#include "worker/agent/agent_core.h"
#include "worker/agent/snapshot_folder.h"

namespace paceline {
void AgentCore::RemoveUnusedSnapshots() {
  for (const v1::GenerationKey& key : snapshots_.Runs()) {
    const std::string& run_id = key.run_id();
    const bool trains = std::any_of(generations_.begin(), generations_.end(),
                                    [&](const auto& entry) { return entry.first.first == run_id; });
    const bool waits = std::any_of(seats_.begin(), seats_.end(), [&](const auto& worker) {
      return worker.has_value() && worker->key.first == run_id;
    });
    if (trains || waits) continue;
    snapshots_.Forget(key);
    Do(RemoveSnapshots{run_id});
  }
}

bool AgentCore::IsIdle() const {
  return generations_.empty() && std::none_of(seats_.begin(), seats_.end(), [](const auto& worker) {
           return worker.has_value();
         });
}

void AgentCore::ExpireSnapshots() {
  if (!IsIdle() || snapshots_.Runs().empty()) {
    snapshots_until_.reset();
  } else if (!snapshots_until_.has_value()) {
    snapshots_until_ = now_.steady + kIdleLimit;
  } else if (*snapshots_until_ <= now_.steady) {
    snapshots_until_.reset();
    RemoveUnusedSnapshots();
  }
}

void AgentCore::OnForget(const v1::GenerationKey& key) {
  for (auto& [known, generation] : generations_) {
    generation.forgotten |= known.first == key.run_id() && known.second <= key.generation();
  }
  if (!snapshots_.Forget(key)) return;
  Do(StopCopying{key});
  Do(RemoveSnapshots{key.run_id()});
}

void AgentCore::BeginFetching(Generation& generation) {
  const v1::StartGeneration& start = generation.start;
  if (!start.live() || snapshot_root_.empty()) return;  // then the rank says what it lacks
  FetchSnapshots fetch{.key = start.key(), .step = start.start_step(), .limit = timeouts_.startup};
  if (const auto run_file = ParseRunFile(start.run_file(), "run.toml", "/", {}); run_file.ok()) {
    fetch.limit = TimeoutsFor(run_file->failure).startup;
  }
  for (const v1::SnapshotSource& source : start.sources()) {
    if (source.node() != node_name_) {
      snapshots_.Drop(start.key(), source.from(), start.start_step());
    }
    const SnapshotPlace place = snapshots_.Find(start.key(), source.from(), start.start_step());
    if (place != SnapshotPlace::kNowhere) continue;
    generation.fetching.insert(source.to());
    fetch.sources.push_back(source);
  }
  if (!fetch.sources.empty()) Do(std::move(fetch));
}

void AgentCore::On(const SnapshotFetched& event) {
  const Key key{event.key.run_id(), event.key.generation()};
  const auto found = generations_.find(key);
  if (found == generations_.end() || found->second.phase != Phase::kWaiting) return;
  if (event.status.ok()) {
    ++counters_.snapshot_fetches;
    counters_.snapshot_fetch_bytes += event.bytes;
    snapshots_.OnCopied(event.key, event.source.from(), found->second.start.start_step());
    found->second.fetching.erase(event.source.to());
    return;
  }
  ++counters_.snapshot_fetch_failures;
  // Unknown: it may pass, and is no consequence of another rank's failure.
  TellFailed(key, event.source.to(),
             absl::UnknownError(
                 "the state of step " + std::to_string(found->second.start.start_step()) +
                 ", rank " + std::to_string(event.source.from()) + "'s snapshot on " +
                 event.source.node() + ", did not come: " + std::string(event.status.message())));
}

void AgentCore::CopyBuddies(const Generation& generation) {
  const v1::StartGeneration& start = generation.start;
  if (start.copies().empty() || snapshot_root_.empty()) return;
  Do(CopySnapshots{.key = start.key(),
                   .base_step = start.start_step(),
                   .copies = {start.copies().begin(), start.copies().end()}});
}

void AgentCore::On(const SnapshotLost& event) {
  snapshots_.OnLost(event.key, event.rank, event.step);
}

void AgentCore::On(const SnapshotCopied& event) {
  if (!event.status.ok()) {
    ++counters_.snapshot_copy_failures;
    return;
  }
  ++counters_.snapshot_copies;
  counters_.snapshot_copy_bytes += event.bytes;
  counters_.snapshot_copied_at_ms = now_.wall_ms;
  snapshots_.OnCopied(event.key, event.rank, event.step);
}

void AgentCore::TellSource(const v1::StartGeneration& start, v1::RankStart& rank_start) const {
  for (const v1::SnapshotSource& source : start.sources()) {
    if (source.to() != rank_start.rank() || snapshot_root_.empty()) continue;
    const SnapshotPlace place = snapshots_.Find(start.key(), source.from(), start.start_step());
    const std::string& run_id = start.key().run_id();
    rank_start.set_restore_rank(source.from());
    rank_start.set_restore_folder(place == SnapshotPlace::kCopy
                                      ? SnapshotCopiesFolder(snapshot_root_, run_id, node_name_)
                                      : SnapshotFolder(snapshot_root_, run_id, node_name_));
  }
}

}  // namespace paceline
