// The simulated agent's snapshots: the real ledger over files that outlive it, the copies that
// buddies keep, and what ranks are to begin from.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/agent.h"

namespace paceline::sim {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kFilesMax = 2;
// Who has been up for so long was known to be up when a start that is told now was planned.
constexpr std::int64_t kLongNs = 120'000'000'000;

}  // namespace

void Agent::FindSnapshots() {
  std::vector<FoundSnapshot> found;
  for (const auto& [where, files] : files_) {
    for (const SnapshotFile& file : files) {
      found.push_back({"run", file.generation, where.second, file.step, where.first});
    }
  }
  snapshots_ = SnapshotLedger(found);
  left_behind_ = snapshots_.AllHeld();
}

void Agent::OnForget(const v1::GenerationKey& key) {
  held_.clear();
  forgotten_ = std::max(forgotten_, key.generation());
  for (Unacked& unacked : unacked_) {
    if (!unacked.message.has_gone()) continue;
    v1::GenerationGone& gone = *unacked.message.mutable_gone();
    if (gone.key().generation() <= forgotten_) gone.clear_held();
  }
  if (snapshots_.Forget(key)) files_.clear();
}

Agent* Agent::Named(const std::string& node) const {
  for (const auto& agent : world_.agents_) {
    if (absl::StrCat("node-", agent->index_) == node) return agent.get();
  }
  return nullptr;
}

const Agent::SnapshotFile* Agent::Read(bool copy, std::int32_t rank, std::int64_t step) const {
  const auto files = files_.find({copy, rank});
  if (files == files_.end()) return nullptr;
  const SnapshotFile* found = nullptr;
  for (const SnapshotFile& file : files->second) {
    if (file.step != step) continue;
    if (found == nullptr || file.generation > found->generation) found = &file;
  }
  return found;
}

void Agent::Write(bool copy, std::int32_t rank, const SnapshotFile& file) {
  std::vector<SnapshotFile>& files = files_[{copy, rank}];
  if (files.size() < kFilesMax) return files.push_back(file);
  const auto worth = [this](const SnapshotFile& held) {
    const bool counts = held.generation == generation_->key().generation() ||
                        held.step <= generation_->start_step();
    return counts ? held.step : -1;
  };
  SnapshotFile& next = worth(files[1]) < worth(files[0]) ? files[1] : files[0];
  if (copy) snapshots_.OnLost(generation_->key(), rank, next.step);
  next = file;
}

// --- a generation's beginning ---

void Agent::TakeUp(const v1::StartGeneration& start) {
  fetching_ = 0;
  for (const v1::SnapshotSource& source : start.sources()) {
    const SnapshotPlace place = snapshots_.Find(start.key(), source.from(), start.start_step());
    if (place == SnapshotPlace::kNowhere) {
      ++fetching_;
      Fetch(start, source);
    } else if (Read(place == SnapshotPlace::kCopy, source.from(), start.start_step()) == nullptr) {
      world_.trouble_ =
          absl::StrCat("the ledger of node-", index_, " tells of rank ", source.from(), "'s step ",
                       start.start_step(), ", which no file holds");
    }
  }
  for (const v1::SnapshotCopy& copy : start.copies()) CopySoon(copy);
  if (fetching_ == 0) BecomeReady(start);
}

void Agent::Fetch(const v1::StartGeneration& start, const v1::SnapshotSource& source) {
  const std::uint64_t incarnation = incarnation_;
  world_.After(milliseconds(world_.random_.Between(1, 500)), [this, start, source, incarnation] {
    if (!alive_ || incarnation != incarnation_ || !Holds(start.key())) return;
    const std::int64_t step = start.start_step();
    Agent* holder = Named(source.node());
    const SnapshotFile* file = nullptr;
    if (holder != nullptr && holder->alive_) {
      file = holder->Read(/*copy=*/false, source.from(), step);
      if (file == nullptr) file = holder->Read(/*copy=*/true, source.from(), step);
      if (file == nullptr && holder->started_at_ + kLongNs < world_.clock_) {
        world_.trouble_ = absl::StrCat("rank ", source.to(), " is to take up step ", step, " from ",
                                       source.node(), ", which does not hold it");
      }
    }
    if (file == nullptr) {
      v1::AgentMessage message;
      v1::RankFailed& failed = *message.mutable_failed();
      *failed.mutable_key() = start.key();
      failed.set_rank(source.to());
      failed.set_status_code(static_cast<int>(absl::StatusCode::kUnknown));
      failed.set_error(absl::StrCat("the state of step ", step, " did not come"));
      failed.set_exit_code(-1);
      return Tell(0, std::move(message));
    }
    Write(/*copy=*/true, source.from(), *file);
    snapshots_.OnCopied(start.key(), source.from(), step);
    if (--fetching_ == 0) BecomeReady(start);
  });
}

// --- while it trains ---

void Agent::TakeSnapshots(std::int64_t step) {
  const std::int64_t interval = world_.options_.snapshot_interval;
  if (interval == 0 || step % interval != 0) return;
  for (const std::int32_t rank : ranks_) {
    if (world_.random_.OneIn(world_.options_.snapshots_per_omission)) continue;
    world_.After(milliseconds(world_.random_.Between(1, 300)),
                 [this, rank, step, key = generation_->key(), incarnation = incarnation_] {
                   if (alive_ && incarnation == incarnation_ && Holds(key)) Take(key, rank, step);
                 });
  }
}

void Agent::Take(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step) {
  Write(/*copy=*/false, rank, {key.generation(), step});
  for (const SnapshotFiles& stale : snapshots_.OnTaken(key, rank, step)) {
    files_.erase({stale.copies, stale.rank});
  }
  for (const auto& agent : world_.agents_) {
    if (!agent->alive_ || !agent->Holds(key)) continue;
    for (const v1::SnapshotCopy& copy : agent->generation_->copies()) {
      if (copy.rank() == rank) agent->CopySoon(copy);
    }
  }
}

void Agent::CopySoon(const v1::SnapshotCopy& copy) {
  world_.After(milliseconds(world_.random_.Between(1, 400)),
               [this, copy, key = generation_->key(), incarnation = incarnation_] {
                 if (alive_ && incarnation == incarnation_ && Holds(key)) Copy(key, copy);
               });
}

void Agent::Copy(const v1::GenerationKey& key, const v1::SnapshotCopy& copy) {
  const Agent* source = Named(copy.node());
  if (source == nullptr || !source->alive_) return;
  const auto files = source->files_.find({false, copy.rank()});
  if (files == source->files_.end()) return;
  std::optional<SnapshotFile> newest;
  for (const SnapshotFile& file : files->second) {
    const bool counts =
        file.generation == key.generation() || file.step <= generation_->start_step();
    if (counts && (!newest || file.step > newest->step)) newest = file;
  }
  if (!newest || Read(/*copy=*/true, copy.rank(), newest->step) != nullptr) return;
  Write(/*copy=*/true, copy.rank(), *newest);
  snapshots_.OnCopied(key, copy.rank(), newest->step);
}

}  // namespace paceline::sim
