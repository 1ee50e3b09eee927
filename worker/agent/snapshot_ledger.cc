#include "worker/agent/snapshot_ledger.h"

#include <google/protobuf/util/message_differencer.h>

namespace paceline {
namespace {

constexpr std::size_t kStepsMax = 2;  // a rank has two files

void Add(std::set<std::int64_t>& steps, std::int64_t step) {
  steps.insert(step);
  if (steps.size() > kStepsMax) steps.erase(steps.begin());
}

}  // namespace

SnapshotLedger::SnapshotLedger(const std::vector<FoundSnapshot>& found) {
  for (const FoundSnapshot& snapshot : found) {
    Run& run = runs_[snapshot.run_id];
    if (snapshot.generation < run.generation) continue;
    // What an older generation has left may be of another lineage by now.
    if (snapshot.generation > run.generation) run = {.generation = snapshot.generation};
    Add(run.steps[snapshot.rank], snapshot.step);
  }
}

SnapshotLedger::Run* SnapshotLedger::Find(const v1::GenerationKey& key) {
  const auto run = runs_.find(key.run_id());
  return run != runs_.end() && run->second.generation == key.generation() ? &run->second : nullptr;
}

void SnapshotLedger::OnStart(const v1::StartGeneration& start) {
  Run& run = runs_[start.key().run_id()];
  // Where a generation was missed, nobody here knows what it went back to.
  const bool follows = run.generation + 1 == start.key().generation();
  const bool same = follows && run.layout.has_value() &&
                    google::protobuf::util::MessageDifferencer::Equals(*run.layout, start.layout());
  if (!same) run.steps.clear();
  for (auto& [rank, steps] : run.steps) {
    steps.erase(steps.upper_bound(start.start_step()), steps.end());
  }
  run.generation = start.key().generation();
  run.layout = start.layout();
}

void SnapshotLedger::OnTaken(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step) {
  if (Run* run = Find(key)) Add(run->steps[rank], step);
}

void SnapshotLedger::Distrust(const v1::GenerationKey& key, std::int32_t rank) {
  if (Run* run = Find(key)) run->steps.erase(rank);
}

v1::GenerationGone SnapshotLedger::Held(const v1::GenerationKey& key) const {
  v1::GenerationGone gone;
  *gone.mutable_key() = key;
  const auto run = runs_.find(key.run_id());
  if (run == runs_.end() || run->second.generation != key.generation()) return gone;
  for (const auto& [rank, steps] : run->second.steps) {
    for (const std::int64_t step : steps) {
      v1::HeldState& held = *gone.add_held();
      held.set_rank(rank);
      held.set_step(step);
      held.set_snapshot(true);
    }
  }
  return gone;
}

std::vector<std::string> SnapshotLedger::Runs() const {
  std::vector<std::string> runs;
  for (const auto& [run_id, run] : runs_) runs.push_back(run_id);
  return runs;
}

std::vector<v1::GenerationGone> SnapshotLedger::AllHeld() const {
  std::vector<v1::GenerationGone> all;
  for (const auto& [run_id, run] : runs_) {
    v1::GenerationKey key;
    key.set_run_id(run_id);
    key.set_generation(run.generation);
    all.push_back(Held(key));
    if (all.back().held().empty()) all.pop_back();
  }
  return all;
}

}  // namespace paceline
