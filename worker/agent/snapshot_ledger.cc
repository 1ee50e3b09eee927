#include "worker/agent/snapshot_ledger.h"

namespace paceline {
namespace {

constexpr std::size_t kStepsMax = 2;  // a rank has two files

void Add(std::set<std::int64_t>& steps, std::int64_t step) {
  steps.insert(step);
  if (steps.size() > kStepsMax) steps.erase(steps.begin());
}

bool Holds(const std::map<std::int32_t, std::set<std::int64_t>>& held, std::int32_t rank,
           std::int64_t step) {
  const auto found = held.find(rank);
  return found != held.end() && found->second.contains(step);
}

}  // namespace

SnapshotLedger::SnapshotLedger(const std::vector<FoundSnapshot>& found) {
  for (const FoundSnapshot& snapshot : found) {
    Run& run = runs_[snapshot.run_id];
    if (snapshot.generation < run.generation) continue;
    // What an older generation has left may be of another lineage by now.
    if (snapshot.generation > run.generation) {
      run = {};
      run.generation = snapshot.generation;
    }
    Add((snapshot.copy ? run.copies : run.own)[snapshot.rank], snapshot.step);
  }
}

SnapshotLedger::Run* SnapshotLedger::Find(const v1::GenerationKey& key) {
  const auto run = runs_.find(key.run_id());
  return run != runs_.end() && run->second.generation == key.generation() ? &run->second : nullptr;
}

bool SnapshotLedger::OnStart(const v1::StartGeneration& start) {
  const auto known = runs_.find(start.key().run_id());
  // Where a generation was missed, nobody here knows what it went back to.
  const bool stays = known != runs_.end() && start.live() &&
                     known->second.generation + 1 == start.key().generation();
  const bool useless = known != runs_.end() && !stays;
  Run& run = runs_[start.key().run_id()];
  if (!stays) run = {};
  for (Steps* held : {&run.own, &run.copies}) {
    for (auto& [rank, steps] : *held) {
      steps.erase(steps.upper_bound(start.start_step()), steps.end());
    }
  }
  run.generation = start.key().generation();
  run.start_step = start.start_step();
  run.ranks.clear();
  run.copied.clear();
  for (const v1::RankAssignment& assignment : start.assignments()) {
    run.ranks.insert(assignment.rank());
  }
  for (const v1::SnapshotCopy& copy : start.copies()) run.copied.insert(copy.rank());
  return useless;
}

std::vector<SnapshotFiles> SnapshotLedger::OnTaken(const v1::GenerationKey& key, std::int32_t rank,
                                                   std::int64_t step) {
  Run* run = Find(key);
  if (run == nullptr) return {};
  std::set<std::int64_t>& steps = run->own[rank];
  Add(steps, step);
  if (steps.size() < kStepsMax || *steps.begin() <= run->start_step) return {};
  std::vector<SnapshotFiles> stale;
  std::erase_if(run->own, [&](const auto& held) {
    const bool goes = !run->ranks.contains(held.first);
    if (goes) stale.push_back({.rank = held.first, .copies = false});
    return goes;
  });
  std::erase_if(run->copies, [&](const auto& held) {
    const bool goes = !run->copied.contains(held.first);
    if (goes) stale.push_back({.rank = held.first, .copies = true});
    return goes;
  });
  return stale;
}

void SnapshotLedger::OnCopied(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step) {
  if (Run* run = Find(key)) Add(run->copies[rank], step);
}

void SnapshotLedger::OnLost(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step) {
  if (Run* run = Find(key)) run->copies[rank].erase(step);
}

void SnapshotLedger::Drop(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step) {
  Run* run = Find(key);
  if (run == nullptr) return;
  for (Steps* held : {&run->own, &run->copies}) {
    if (const auto found = held->find(rank); found != held->end()) found->second.erase(step);
  }
}

bool SnapshotLedger::Forget(const v1::GenerationKey& key) {
  const auto run = runs_.find(key.run_id());
  if (run == runs_.end() || run->second.generation > key.generation()) return false;
  runs_.erase(run);
  return true;
}

SnapshotPlace SnapshotLedger::Find(const v1::GenerationKey& key, std::int32_t rank,
                                   std::int64_t step) const {
  const auto run = runs_.find(key.run_id());
  if (run == runs_.end() || run->second.generation != key.generation()) {
    return SnapshotPlace::kNowhere;
  }
  if (Holds(run->second.own, rank, step)) return SnapshotPlace::kOwn;
  return Holds(run->second.copies, rank, step) ? SnapshotPlace::kCopy : SnapshotPlace::kNowhere;
}

v1::GenerationGone SnapshotLedger::Held(const v1::GenerationKey& key) const {
  v1::GenerationGone gone;
  *gone.mutable_key() = key;
  const auto run = runs_.find(key.run_id());
  if (run == runs_.end() || run->second.generation != key.generation()) return gone;
  Steps all = run->second.own;
  for (const auto& [rank, steps] : run->second.copies) {
    all[rank].insert(steps.begin(), steps.end());
  }
  for (const auto& [rank, steps] : all) {
    for (const std::int64_t step : steps) {
      v1::HeldState& held = *gone.add_held();
      held.set_rank(rank);
      held.set_step(step);
      held.set_snapshot(true);
    }
  }
  return gone;
}

std::vector<v1::GenerationKey> SnapshotLedger::Runs() const {
  std::vector<v1::GenerationKey> runs;
  for (const auto& [run_id, run] : runs_) {
    v1::GenerationKey& key = runs.emplace_back();
    key.set_run_id(run_id);
    key.set_generation(run.generation);
  }
  return runs;
}

std::vector<v1::GenerationGone> SnapshotLedger::AllHeld() const {
  std::vector<v1::GenerationGone> all;
  for (const v1::GenerationKey& key : Runs()) {
    all.push_back(Held(key));
    if (all.back().held().empty()) all.pop_back();
  }
  return all;
}

}  // namespace paceline
