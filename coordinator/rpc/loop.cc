#include "coordinator/rpc/loop.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/files.h"
#include "coordinator/rpc/fact_text.h"
#include "coordinator/rpc/summary.h"

namespace paceline {
namespace {

// So that NextDeadline() = SteadyTime::max() does not overflow in wait_until.
constexpr std::chrono::seconds kIdleMax{60};

template <typename... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};
template <typename... Functions>
Overloaded(Functions...) -> Overloaded<Functions...>;

std::string Text(const absl::Status& status) { return status.ToString(); }

void LogFailure(const absl::Status& status) {
  if (!status.ok()) spdlog::error("{}", Text(status));
}

}  // namespace

Loop::Loop(Parts parts, LoopOptions options) : parts_(std::move(parts)), options_(options) {}

Loop::~Loop() { (void)Stop(); }

void Loop::Start() {
  PACELINE_CHECK(!thread_.joinable());
  admitting_ = true;
  thread_ = std::thread([this] { Run(); });
}

absl::Status Loop::Stop() {
  {
    const std::lock_guard lock(mutex_);
    admitting_ = false;
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(mutex_);
  return broken_;
}

void Loop::Post(core::Event event, std::function<void()> taken) {
  {
    const std::lock_guard lock(mutex_);
    // An agent says again what it is not heard to say; nothing else may keep the loop from ending.
    if (ended_ || (ending_ && std::holds_alternative<core::AgentSaid>(event))) return;
    queue_.push_back({std::move(event), std::move(taken), nullptr, {}});
  }
  changed_.notify_all();
}

absl::Status Loop::TryPost(core::Event event) { return Admit({std::move(event), {}, {}, {}}); }

absl::Status Loop::Ask(SteadyTime deadline, Question question) {
  return Admit({core::Tick{}, {}, std::move(question), deadline});
}

absl::Status Loop::Admit(Entry entry) {
  {
    const std::lock_guard lock(mutex_);
    if (!admitting_) return absl::UnavailableError("the coordinator is ending; try again later");
    if (queue_.size() >= options_.queue_max) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the coordinator is overloaded: ", queue_.size(), " requests wait; try again later"));
    }
    queue_.push_back(std::move(entry));
  }
  changed_.notify_all();
  return absl::OkStatus();
}

void Loop::Run() {
  Add(parts_.core.Open(ReadClock()));
  bool going = Commit();
  while (going) {
    std::vector<Entry> batch = TakeBatch();
    if (batch.empty()) {
      // Ending. What the files still do may come back as events, which are decided too.
      parts_.files.Drain();
      const std::lock_guard lock(mutex_);
      going = broken_.ok();
      if (queue_.empty()) break;
      continue;
    }
    Process(std::move(batch));
    const std::lock_guard lock(mutex_);
    going = broken_.ok();
  }
  if (going) MaybeSnapshot(/*last=*/true);

  std::deque<Entry> rest;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    admitting_ = false;
    rest.swap(queue_);
  }
  for (Entry& entry : rest) {
    if (!entry.question) continue;
    entry.question(absl::UnavailableError("the coordinator is ending; try again later"),
                   parts_.core, ReadClock());
  }
}

// Waits for entries or the core's next deadline (then a Tick is in the batch). Empty: the loop
// is to end, and nothing is queued.
std::vector<Loop::Entry> Loop::TakeBatch() {
  const SteadyTime now = ReadClock().steady;
  const SteadyTime due = std::min(parts_.core.NextDeadline(), now + kIdleMax);
  std::vector<Entry> batch;
  {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, due, [this] { return !queue_.empty() || ending_; });
    parts_.metrics.QueueDepth(queue_.size());
    if (queue_.empty() && ending_) return batch;
    const auto count = static_cast<std::ptrdiff_t>(std::min(queue_.size(), options_.batch_max));
    std::move(queue_.begin(), queue_.begin() + count, std::back_inserter(batch));
    queue_.erase(queue_.begin(), queue_.begin() + count);
  }
  if (parts_.core.NextDeadline() <= ReadClock().steady || batch.empty()) {
    batch.push_back({core::Tick{}, {}, {}, {}});
  }
  for (const Entry& entry : batch) {
    if (entry.taken) entry.taken();
  }
  return batch;
}

void Loop::Process(std::vector<Entry> batch) {
  bool committed = true;
  for (const Entry& entry : batch) {
    if (entry.question || !committed) continue;
    const Now now = ReadClock();
    Add(parts_.core.Decide(entry.event, now));
    parts_.metrics.Decided(SecondsBetween(now.steady, ReadClock().steady));
    if (facts_bytes_ >= options_.batch_bytes_max) committed = Commit();
  }
  if (committed) committed = Commit() && StillLeads();
  const Now now = ReadClock();
  for (const Entry& entry : batch) {
    if (!entry.question) continue;
    absl::Status status;
    if (!committed) {
      status = absl::UnavailableError("the coordinator leads no more");
    } else if (now.steady > entry.deadline) {
      status = absl::DeadlineExceededError("the question waited too long for the coordinator");
    }
    entry.question(status, parts_.core, now);
  }
  if (committed) MaybeSnapshot(/*last=*/false);
}

void Loop::Add(core::Decision decision) {
  for (v1::Fact& fact : decision.facts) {
    facts_bytes_ += fact.ByteSizeLong();
    facts_.push_back(std::move(fact));
  }
  std::move(decision.effects.begin(), decision.effects.end(), std::back_inserter(effects_));
}

// Where it cannot be told, the next append will.
bool Loop::StillLeads() {
  const SteadyTime now = ReadClock().steady;
  if (now - led_at_ < options_.fence_interval) return true;
  const absl::Status status = parts_.fence.Check();
  if (absl::IsFailedPrecondition(status)) {
    Break(status);
    return false;
  }
  if (status.ok()) led_at_ = now;
  return true;
}

// Makes what was decided durable, and lets its effects leave. False: the journal has failed, or a
// newer coordinator has taken over.
bool Loop::Commit() {
  if (facts_.empty() && !effects_.empty() && !StillLeads()) return false;
  if (!facts_.empty()) {
    const SteadyTime start = ReadClock().steady;
    if (const absl::Status status = parts_.journal.Append(facts_); !status.ok()) {
      Break(status);
      return false;
    }
    led_at_ = start;
    parts_.metrics.Appended(facts_, SecondsBetween(start, ReadClock().steady));
    for (const v1::Fact& fact : facts_) {
      if (const std::string text = FactText(fact); !text.empty()) spdlog::info("{}", text);
    }
    facts_since_snapshot_ += facts_.size();
    bytes_since_snapshot_ += facts_bytes_;
    facts_.clear();
    facts_bytes_ = 0;
  }
  std::vector<core::Effect> effects;
  effects.swap(effects_);
  for (const core::Effect& effect : effects) Carry(effect);
  return true;
}

void Loop::Carry(const core::Effect& effect) {
  std::visit(
      Overloaded{
          [&](const core::SendToAgent& send) { parts_.outbox.Send(send.session, send.message); },
          [&](const core::CloseSession& close) {
            parts_.outbox.Close(close.session, close.reason);
          },
          [&](const core::AnswerCall& answer) { AnswerSubmit(answer); },
          [&](const core::WritePendingManifest& write) {
            parts_.files.Enqueue([this, write] {
              const absl::Status status =
                  WritePendingManifest(parts_.fence, write.folder, write.manifest);
              LogFailure(status);
              Post(core::ManifestWritten{write.key, write.step, status});
            });
          },
          [&](const core::PublishManifest& publish) {
            parts_.files.Enqueue([this, folder = publish.folder] {
              const absl::Status status = Fenced([&] { return PublishManifest(folder); });
              LogFailure(status);
              const bool over = absl::IsNotFound(status) || absl::IsFailedPrecondition(status);
              if (!status.ok() && !over) Post(core::PublishFailed{folder});
            });
          },
          [&](const core::DeleteCheckpoint& remove) {
            parts_.files.Enqueue([this, remove] {
              LogFailure(Fenced([&] { return DeleteCheckpoint(remove.folder, remove.committed); }));
            });
          },
          [&](const core::SetCheckpointAside& aside) {
            parts_.files.Enqueue([this, folder = aside.folder] {
              LogFailure(Fenced([&] { return SetCheckpointAside(folder); }));
            });
          },
          [&](const core::SweepCheckpoints& sweep) {
            parts_.files.Enqueue([this, sweep] {
              LogFailure(Fenced([&] {
                return SweepCheckpoints(parts_.fence, sweep.dir, sweep.last_generation,
                                        sweep.known);
              }));
            });
          },
          [&](const core::WriteSummary& write) {
            const auto status = parts_.core.GetRun(write.run_id, ReadClock());
            if (!status.ok()) return LogFailure(status.status());
            parts_.files.Enqueue([this, status = *status] {
              const LineageRecords records =
                  ReadLineageRecords(status.run_dir(), status.checkpoint_step());
              LogFailure(parts_.fence.Write(absl::StrCat(status.run_dir(), "/summary.json"),
                                            SummaryJson(status, records), 0644));
            });
          },
      },
      effect);
}

// A submitted run's folder says where its coordinator is before its submitter hears that it is
// taken.
void Loop::AnswerSubmit(const core::AnswerCall& answer) {
  if (!answer.status.ok() || answer.run_id.empty()) {
    return parts_.outbox.Answer(answer.call, answer.status, answer.run_id);
  }
  const auto status = parts_.core.GetRun(answer.run_id, ReadClock());
  parts_.files.Enqueue([this, answer, folder = status.ok() ? status->run_dir() : ""] {
    absl::Status status;
    if (!folder.empty()) status = parts_.coordinator_files.WriteTo(folder);
    LogFailure(status);
    if (absl::IsFailedPrecondition(status)) {
      status = absl::UnavailableError(status.message());  // ask the one that has taken over
    } else {
      status = answer.status;
    }
    parts_.outbox.Answer(answer.call, status, answer.run_id);
  });
}

// What is done twice without harm, and by a successor as well: no more than a look is needed.
absl::Status Loop::Fenced(const std::function<absl::Status()>& job) const {
  RETURN_IF_ERROR(parts_.fence.Check());
  return job();
}

void Loop::MaybeSnapshot(bool last) {
  const bool due = facts_since_snapshot_ >= options_.snapshot_facts ||
                   bytes_since_snapshot_ >= options_.snapshot_bytes;
  if (!due && !(last && facts_since_snapshot_ > 0)) return;
  const SteadyTime start = ReadClock().steady;
  const v1::StateSnapshot snapshot = parts_.core.Snapshot();
  facts_since_snapshot_ = 0;
  bytes_since_snapshot_ = 0;
  if (const absl::Status status = parts_.journal.WriteSnapshot(snapshot); !status.ok()) {
    // Nothing is lost: the journal still holds every fact. If it is broken, Append will say so.
    spdlog::warn("the state's snapshot could not be written: {}", Text(status));
    return;
  }
  spdlog::info("snapshot of the state after fact {} written in {:.3f} s", snapshot.index(),
               SecondsBetween(start, ReadClock().steady));
}

void Loop::Abandon(const absl::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    admitting_ = false;
    if (!broken_.ok()) return;
    broken_ = status;
  }
  parts_.on_broken(status);
}

void Loop::Break(const absl::Status& status) {
  effects_.clear();
  {
    const std::lock_guard lock(mutex_);
    admitting_ = false;
    if (!broken_.ok()) return;
    broken_ = status;
  }
  if (!absl::IsFailedPrecondition(status)) {
    spdlog::critical("the journal has failed, the coordinator stops: {}", Text(status));
  }
  parts_.on_broken(status);
}

}  // namespace paceline
