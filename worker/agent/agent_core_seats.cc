// AgentCore's third part: which process gets which rank, and the processes that are kept warm for
// one.
#include <algorithm>
#include <cstdio>

#include "common/check.h"
#include "common/run_file.h"
#include "worker/agent/agent_core.h"

namespace paceline {
namespace {

constexpr std::chrono::milliseconds kWarmPauseMin{1000};
constexpr std::chrono::milliseconds kWarmPauseMax{60'000};

std::string RankLog(const std::string& run_dir, int rank) {
  char name[32];
  std::snprintf(name, sizeof(name), "rank-%05d.log", rank);
  return run_dir + "/logs/" + name;
}

// What is wrong with a run file its ranks' workers say. Those of an MPI job are not started here.
int WarmWorkersOf(const v1::StartGeneration& start) {
  const auto run_file = ParseRunFile(start.run_file(), "run.toml", "/", {});
  if (!run_file.ok() || run_file->launch.launcher == "mpi") return 0;
  return static_cast<int>(
      std::min<std::int64_t>(run_file->failure.warm_workers, start.assignments_size()));
}

}  // namespace

int AgentCore::SeatOf(int slot) const {
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    if (seats_[seat].has_value() && seats_[seat]->slot == slot) return static_cast<int>(seat);
  }
  return -1;
}

int AgentCore::WarmSeat(const std::string& run_id) const {
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    const std::optional<Worker>& worker = seats_[seat];
    if (!worker.has_value() || worker->slot >= 0 || worker->key.first != run_id) continue;
    if (worker->loaded && worker->session_open && !worker->exit.has_value() &&
        worker->idle_until.has_value() && now_.steady <= worker->heard_at + kWarmSilence) {
      return static_cast<int>(seat);
    }
  }
  return -1;
}

int AgentCore::FreeSeat(int slot) const {
  if (slot >= 0 && !seats_[static_cast<std::size_t>(slot)].has_value()) return slot;
  const auto free = std::find(seats_.begin(), seats_.end(), std::nullopt);
  PACELINE_CHECK(free != seats_.end());  // at most one worker a slot, and as many warm ones
  return static_cast<int>(free - seats_.begin());
}

bool AgentCore::MakeRoom(const Generation& generation) {
  bool room = true;
  for (const v1::RankAssignment& assignment : generation.start.assignments()) {
    const int seat = SeatOf(assignment.slot());
    if (seat < 0) continue;
    const Worker& worker = *FindWorker(seat);
    const bool fits = worker.idle && worker.idle_until.has_value() && worker.session_open &&
                      worker.key.first == generation.start.key().run_id();
    if (fits) continue;
    room = false;
    if (worker.idle) EndIdle(seat);
  }
  return room;
}

void AgentCore::StartWaiting() {
  for (auto& [key, generation] : generations_) {
    if (generation.phase != Phase::kWaiting || !generation.fetching.empty()) continue;
    if (MakeRoom(generation)) Begin(key, generation);
  }
}

// An idle worker that fits goes on in its process, as another rank if need be; the other slots get
// warm ones, and new ones where those do not suffice.
void AgentCore::Begin(const Key& key, Generation& generation) {
  generation.phase = Phase::kRunning;
  for (const v1::RankAssignment& assignment : generation.start.assignments()) {
    Worker worker;
    worker.key = key;
    worker.slot = assignment.slot();
    worker.rank = assignment.rank();
    worker.log_path = RankLog(generation.start.run_dir(), assignment.rank());
    int seat = SeatOf(worker.slot);
    const bool reused = seat >= 0;
    if (!reused) seat = WarmSeat(key.first);
    if (const Worker* idle = FindWorker(seat)) {
      worker.session = idle->session;
      worker.session_open = true;
      if (idle->log_path != worker.log_path) {
        Do(SwitchLog{seat, generation.start.key(), assignment.rank(), worker.log_path});
      }
      seats_[static_cast<std::size_t>(seat)] = std::move(worker);
      ++(reused ? counters_.worker_reuses : counters_.warm_uses);
      TellStart(seat, generation);
      continue;
    }
    seat = FreeSeat(worker.slot);
    const SpawnWorker spawn{seat, generation.start.key(), assignment.rank(), worker.log_path};
    seats_[static_cast<std::size_t>(seat)] = std::move(worker);
    ++counters_.worker_starts;
    Do(spawn);
  }
  for (std::optional<Worker>& worker : seats_) {
    if (worker.has_value() && worker->slot < 0 && worker->key.first == key.first &&
        worker->idle_until.has_value()) {
      worker->idle_until = SteadyTime::max();
    }
  }
  warm_pause_ = {};
  CopyBuddies(generation);
  RemoveUnusedSnapshots();
}

void AgentCore::EndSilentWarm() {
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    const std::optional<Worker>& worker = seats_[seat];
    if (!worker.has_value() || worker->slot >= 0) continue;
    const auto limit = worker->loaded ? timeouts_.lease : timeouts_.startup;
    if (now_.steady > worker->heard_at + limit) EndIdle(static_cast<int>(seat));
  }
}

void AgentCore::KeepWarm() {
  EndSilentWarm();
  if (ending_.has_value() || (warm_due_.has_value() && now_.steady < *warm_due_)) return;
  warm_due_.reset();
  for (auto& [key, generation] : generations_) {
    const bool stepped = generation.phase == Phase::kRunning &&
                         std::ssize(generation.ranks) == generation.start.assignments_size() &&
                         std::all_of(generation.ranks.begin(), generation.ranks.end(),
                                     [](const auto& rank) { return rank.second.steps_done > 0; });
    if (!stepped) continue;
    if (!generation.warm_workers.has_value()) {
      generation.warm_workers = WarmWorkersOf(generation.start);
    }
    int all = 0;
    int kept = 0;
    bool loading = false;
    for (const std::optional<Worker>& worker : seats_) {
      if (!worker.has_value() || worker->slot >= 0) continue;
      ++all;
      if (worker->key.first != key.first) continue;
      ++kept;
      loading |= !worker->loaded;
    }
    if (loading || kept >= *generation.warm_workers || all >= slots_) continue;
    StartWarm(generation.start);
  }
}

void AgentCore::StartWarm(const v1::StartGeneration& start) {
  const int seat = FreeSeat(/*slot=*/-1);
  Worker worker;
  worker.key = {start.key().run_id(), 0};
  worker.log_path = start.run_dir() + "/logs/warm-" + node_name_ + ".log";
  worker.idle = true;
  worker.idle_until = SteadyTime::max();
  worker.heard_at = now_.steady;
  const SpawnWorker spawn{seat, start.key(), std::nullopt, worker.log_path};
  seats_[static_cast<std::size_t>(seat)] = std::move(worker);
  ++counters_.worker_starts;
  Do(spawn);
}

void AgentCore::OnWarmHello(int seat, bool same_release) {
  const auto generation = std::find_if(
      generations_.rbegin(), generations_.rend(),
      [&](const auto& entry) { return entry.first.first == FindWorker(seat)->key.first; });
  if (!same_release || generation == generations_.rend()) return Do(KillWorker{seat});
  v1::WorkerCommand command;
  command.mutable_warm_up()->set_run_file(generation->second.start.run_file());
  Do(TellWorker{seat, std::move(command)});
}

// Whatever ends it again and again shall not cost the ranks their processors.
void AgentCore::OnWarmEnded(int seat) {
  seats_[static_cast<std::size_t>(seat)].reset();
  ++counters_.warm_ended;
  warm_pause_ = std::clamp(2 * warm_pause_, kWarmPauseMin, kWarmPauseMax);
  warm_due_ = now_.steady + warm_pause_;
}

void AgentCore::ReleaseWarm(const std::string& run_id) {
  const bool here = std::any_of(generations_.begin(), generations_.end(),
                                [&](const auto& entry) { return entry.first.first == run_id; });
  if (here) return;
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    std::optional<Worker>& worker = seats_[seat];
    if (!worker.has_value() || worker->slot >= 0 || worker->key.first != run_id) continue;
    if (worker->idle_until.has_value()) worker->idle_until = now_.steady + kIdleLimit;
  }
}

}  // namespace paceline
