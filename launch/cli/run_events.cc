#include "launch/cli/run_events.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/run_file.h"
#include "common/run_state.h"
#include "launch/cli/format.h"

namespace paceline::cli {
namespace {

using nlohmann::json;

std::string NameOf(const std::string& folder) {
  return std::filesystem::path(folder).filename().string();
}

std::string LayoutText(const v1::Layout& layout) {
  return absl::StrCat("pipeline ", layout.pipeline(), " x data ", layout.data(), ", expert ",
                      layout.expert(), layout.shard_optimizer() ? ", zero 1" : "");
}

std::string After(const std::string& separator, const std::string& text) {
  return text.empty() ? "" : separator + text;
}

}  // namespace

void RunEvents::Add(const v1::Fact& fact, std::string kind, std::string text, json fields) {
  taken_.push_back({{.index = fact.index(),
                     .at_ms = fact.at_ms(),
                     .kind = std::move(kind),
                     // Errors of workers may have several lines; an event has one.
                     .text = FormatOneLine(std::move(text)),
                     .fields = std::move(fields)},
                    std::nullopt});
}

void RunEvents::AddOfNode(const v1::Fact& fact, std::uint64_t node_id, std::string kind,
                          std::string text, json fields) {
  Add(fact, std::move(kind), std::move(text), std::move(fields));
  taken_.back().node_id = node_id;
}

std::vector<RunEvent> RunEvents::Events() const {
  std::vector<RunEvent> events;
  if (first_epoch_) events.push_back(first_epoch_->event);
  for (const Taken& taken : taken_) {
    if (!taken.node_id || used_.contains(*taken.node_id)) events.push_back(taken.event);
  }
  // The coordinator's beginning lies before the nodes', too.
  std::stable_sort(events.begin(), events.end(),
                   [](const RunEvent& a, const RunEvent& b) { return a.index < b.index; });
  return events;
}

std::string RunEvents::NodeName(std::uint64_t node_id) const {
  const auto name = names_.find(node_id);
  return name == names_.end() ? absl::StrCat("node ", node_id) : name->second;
}

std::string RunEvents::PlacementText() const {
  std::string text;
  for (int first = 0; first < plan_.placements_size();) {
    int end = first + 1;
    while (end < plan_.placements_size() &&
           plan_.placements(end).node_id() == plan_.placements(first).node_id() &&
           plan_.placements(end).rank() == plan_.placements(end - 1).rank() + 1) {
      ++end;
    }
    const std::int32_t low = plan_.placements(first).rank();
    const std::int32_t high = plan_.placements(end - 1).rank();
    absl::StrAppend(&text,
                    text.empty() ? (plan_.placements_size() == 1 ? "rank " : "ranks ") : ", ", low,
                    high > low ? absl::StrCat("-", high) : "", " on ",
                    NodeName(plan_.placements(first).node_id()));
    first = end;
  }
  return text;
}

// Of the states that had to come from another node.
std::string RunEvents::SourcesText() const {
  std::string text;
  int more = 0;
  for (const v1::SnapshotSource& source : plan_.sources()) {
    const bool placed = source.to() >= 0 && source.to() < plan_.placements_size();
    if (!placed || plan_.placements(source.to()).node_id() == source.node_id()) continue;
    if (!text.empty()) {
      ++more;
      continue;
    }
    absl::StrAppend(&text, " (rank ", source.to(), "'s on ", NodeName(source.node_id()));
  }
  if (text.empty()) return text;
  return absl::StrCat(text, more == 0 ? "" : absl::StrCat(", and ", more, " more elsewhere"), ")");
}

std::string RunEvents::CulpritNode(std::int32_t rank) const {
  for (const v1::RankPlacement& placement : plan_.placements()) {
    if (placement.rank() == rank) return NodeName(placement.node_id());
  }
  return "";
}

void RunEvents::Take(const v1::StateSnapshot& snapshot) {
  for (const v1::SnapshotNode& node : snapshot.nodes()) {
    names_[node.node_id()] = node.node().name();
    if (node.node().run_id() == run_id_) used_.insert(node.node_id());
  }
  if (known_) return;
  for (const v1::SnapshotRun& run : snapshot.runs()) {
    if (run.request().run_id() != run_id_) continue;
    known_ = true;
    begun_before_ = true;
    active_ = !HasEnded(run.state());
    plan_ = run.plan();
    for (const v1::RankPlacement& placement : plan_.placements()) {
      used_.insert(placement.node_id());
    }
  }
}

bool RunEvents::IsOfRun(const v1::Fact& fact) const {
  switch (fact.body_case()) {
    case v1::Fact::kRunSubmitted:
      return fact.run_submitted().request().run_id() == run_id_;
    case v1::Fact::kGenerationStarted:
      return fact.generation_started().key().run_id() == run_id_;
    case v1::Fact::kGenerationEnded:
      return fact.generation_ended().key().run_id() == run_id_;
    case v1::Fact::kWindowGranted:
      return fact.window_granted().key().run_id() == run_id_;
    case v1::Fact::kWindowsRolledBack:
      return fact.windows_rolled_back().key().run_id() == run_id_;
    case v1::Fact::kCheckpointCommitted:
      return fact.checkpoint_committed().key().run_id() == run_id_;
    case v1::Fact::kCheckpointDiscarded:
      return fact.checkpoint_discarded().run_id() == run_id_;
    case v1::Fact::kRunStopRequested:
      return fact.run_stop_requested().run_id() == run_id_;
    case v1::Fact::kRunEnded:
      return fact.run_ended().run_id() == run_id_;
    case v1::Fact::kMoveRequested:
      return fact.move_requested().key().run_id() == run_id_;
    case v1::Fact::kFirstStepDone:
      return fact.first_step_done().key().run_id() == run_id_;
    default:
      return false;
  }
}

void RunEvents::Take(const v1::Fact& fact) {
  if (fact.has_epoch_opened()) return OnEpoch(fact);
  if (fact.has_node_joined()) return OnNodeJoined(fact);
  if (fact.has_node_left()) return OnNodeLeft(fact);
  if (fact.has_node_drained()) return OnNodeDrained(fact);
  if (fact.has_node_failed()) return OnNodeFailed(fact);
  if (fact.has_node_undrained()) {
    const std::uint64_t id = fact.node_undrained().node_id();
    return AddOfNode(fact, id, "node_undrained", NodeName(id) + " may get work again",
                     {{"node", NodeName(id)}});
  }
  if (!IsOfRun(fact)) return;
  if (!known_) {
    begun_before_ = !fact.has_run_submitted() || fact.run_submitted().request().resume();
  }
  known_ = true;
  switch (fact.body_case()) {
    case v1::Fact::kRunSubmitted:
      return OnSubmitted(fact);
    case v1::Fact::kGenerationStarted:
      return OnStarted(fact);
    case v1::Fact::kGenerationEnded:
      return OnEnded(fact);
    case v1::Fact::kWindowGranted:
      return OnGranted(fact);
    case v1::Fact::kWindowsRolledBack:
      return OnRolledBack(fact);
    case v1::Fact::kCheckpointCommitted:
      return OnCommitted(fact);
    case v1::Fact::kCheckpointDiscarded:
      return OnDiscarded(fact);
    case v1::Fact::kRunStopRequested: {
      const v1::RunStopRequested& stop = fact.run_stop_requested();
      return Add(fact, "stop_requested", "stop requested" + After(": ", stop.reason()),
                 {{"reason", stop.reason()}});
    }
    case v1::Fact::kMoveRequested: {
      const v1::MoveRequested& move = fact.move_requested();
      return Add(
          fact, "move_requested",
          absl::StrCat("generation ", move.key().generation(), " is to end at ",
                       move.at_checkpoint() ? "its next" : "a", " checkpoint: ", move.reason()),
          {{"generation", move.key().generation()},
           {"at_next_checkpoint", move.at_checkpoint()},
           {"reason", move.reason()}});
    }
    case v1::Fact::kFirstStepDone:
      return OnFirstStep(fact);
    case v1::Fact::kRunEnded:
      return OnRunEnded(fact);
    default:
      return;
  }
}

void RunEvents::OnEpoch(const v1::Fact& fact) {
  const std::uint64_t epoch = fact.epoch_opened().epoch();
  json fields = {{"epoch", epoch}, {"took_over", active_}};
  Add(fact, "coordinator_started",
      absl::StrCat("a coordinator ", active_ ? "took over" : "started", ", epoch ", epoch),
      std::move(fields));
  if (known_) return;
  // Of those before the run's submission only the last concerns it.
  first_epoch_ = std::move(taken_.back());
  taken_.pop_back();
}

void RunEvents::OnNodeJoined(const v1::Fact& fact) {
  const v1::RegisterNode& node = fact.node_joined().node();
  const std::uint64_t id = fact.node_joined().node_id();
  names_[id] = node.name();
  if (node.run_id() == run_id_) used_.insert(id);
  AddOfNode(fact, id, "node_joined",
            absl::StrCat(node.name(), " joined from ", node.host(), " with ",
                         FormatNumberOf(node.slots(), "slot")),
            {{"node", node.name()},
             {"host", node.host()},
             {"slots", node.slots()},
             {"incarnation", node.incarnation()}});
}

void RunEvents::OnNodeLeft(const v1::Fact& fact) {
  const v1::NodeLeft& left = fact.node_left();
  const std::string name = NodeName(left.node_id());
  AddOfNode(fact, left.node_id(), "node_left", name + " left" + After(": ", left.reason()),
            {{"node", name}, {"incarnation", left.incarnation()}, {"reason", left.reason()}});
}

void RunEvents::OnNodeDrained(const v1::Fact& fact) {
  const v1::NodeDrained& drained = fact.node_drained();
  const std::string name = NodeName(drained.node_id());
  AddOfNode(fact, drained.node_id(), drained.quarantined() ? "node_quarantined" : "node_drained",
            absl::StrCat(name, drained.quarantined() ? " is quarantined" : " is drained",
                         After(": ", drained.reason())),
            {{"node", name}, {"reason", drained.reason()}});
}

void RunEvents::OnNodeFailed(const v1::Fact& fact) {
  const v1::NodeFailed& failed = fact.node_failed();
  const std::string name = NodeName(failed.node_id());
  AddOfNode(fact, failed.node_id(), "node_failed", absl::StrCat(name, " failed: ", failed.reason()),
            {{"node", name}, {"reason", failed.reason()}});
}

void RunEvents::OnSubmitted(const v1::Fact& fact) {
  const v1::SubmitRunRequest& request = fact.run_submitted().request();
  active_ = true;
  std::string text = request.resume() ? "resumed" : "submitted";
  json fields = {{"resume", request.resume()}, {"corpus_digest", request.corpus_digest()}};
  const absl::StatusOr<RunFile> file =
      ParseRunFile(request.run_file(), run_id_ + "/run.toml", "/", {});
  if (file.ok()) {
    absl::StrAppend(&text, ": ", FormatNumberOf(file->train.steps, "step"), " on ",
                    FormatNumberOf(file->launch.nodes, "node"), " x ",
                    FormatNumberOf(file->launch.slots_per_node, "slot"), ", paid by ",
                    file->run.member, " for ", file->run.project);
    fields["steps"] = file->train.steps;
    fields["nodes"] = file->launch.nodes;
    fields["slots_per_node"] = file->launch.slots_per_node;
    fields["member"] = file->run.member;
    fields["project"] = file->run.project;
  }
  Add(fact, request.resume() ? "resumed" : "submitted", std::move(text), std::move(fields));
}

void RunEvents::OnStarted(const v1::Fact& fact) {
  plan_ = fact.generation_started();
  started_ms_ = fact.at_ms();
  json ranks = json::array();
  for (const v1::RankPlacement& placement : plan_.placements()) {
    used_.insert(placement.node_id());
    ranks.push_back({{"rank", placement.rank()},
                     {"node", NodeName(placement.node_id())},
                     {"slot", placement.slot()}});
  }
  json sources = json::array();
  for (const v1::SnapshotSource& source : plan_.sources()) {
    sources.push_back({{"rank", source.to()},
                       {"from_rank", source.from()},
                       {"node", NodeName(source.node_id())}});
  }
  const v1::Layout& layout = plan_.layout();
  const std::string from =
      plan_.live() ? absl::StrCat("step ", plan_.start_step(), ", held in memory", SourcesText())
      : plan_.checkpoint().empty()
          ? "the beginning"
          : absl::StrCat("step ", plan_.start_step(), ", ", NameOf(plan_.checkpoint()));
  Add(fact, "generation_started",
      absl::StrCat("generation ", plan_.key().generation(), " started from ", from, ": ",
                   LayoutText(layout), "; ", PlacementText(), After("; ", plan_.reason())),
      {{"generation", plan_.key().generation()},
       {"start_step", plan_.start_step()},
       {"checkpoint", plan_.checkpoint().empty() ? json(nullptr) : json(plan_.checkpoint())},
       {"live", plan_.live()},
       {"layout",
        {{"pipeline", layout.pipeline()},
         {"data", layout.data()},
         {"expert", layout.expert()},
         {"schedule", layout.schedule()},
         {"virtual_stages", layout.virtual_stages()},
         {"zero", layout.shard_optimizer() ? 1 : 0}}},
       {"ranks", std::move(ranks)},
       {"snapshots", std::move(sources)},
       {"reason", plan_.reason()}});
}

void RunEvents::OnFirstStep(const v1::Fact& fact) {
  const v1::FirstStepDone& done = fact.first_step_done();
  std::string text =
      absl::StrCat("generation ", done.key().generation(), " has done its first step");
  json fields = {{"generation", done.key().generation()}, {"recovery_ms", nullptr}};
  if (done.has_recovery()) {
    const v1::RecoveryTimes& times = done.recovery();
    const std::int64_t total = times.detect_ms() + times.fence_ms() + times.regroup_ms() +
                               times.restore_ms() + times.first_step_ms();
    absl::StrAppend(&text, ", ", total, " ms after the failure: detect ", times.detect_ms(),
                    ", fence ", times.fence_ms(), ", regroup ", times.regroup_ms(), ", restore ",
                    times.restore_ms(), ", first step ", times.first_step_ms());
    fields["recovery_ms"] = {{"total", total},
                             {"detect", times.detect_ms()},
                             {"fence", times.fence_ms()},
                             {"regroup", times.regroup_ms()},
                             {"restore", times.restore_ms()},
                             {"first_step", times.first_step_ms()}};
  }
  Add(fact, "first_step", std::move(text), std::move(fields));
  taken_.back().event.routine = !done.has_recovery();
}

void RunEvents::OnEnded(const v1::Fact& fact) {
  const v1::GenerationEnded& ended = fact.generation_ended();
  json fields = {{"generation", ended.key().generation()},
                 {"last_step", ended.last_step()},
                 {"reason", ended.reason()},
                 {"seconds", nullptr},
                 {"cause", nullptr},
                 {"scope", nullptr},
                 {"culprit", nullptr}};
  std::string text =
      absl::StrCat("generation ", ended.key().generation(), " ended at step ", ended.last_step());
  if (started_ms_ > 0) {
    const double seconds = static_cast<double>(fact.at_ms() - started_ms_) / 1000;
    absl::StrAppend(&text, " after ", FormatDuration(seconds));
    fields["seconds"] = seconds;
  }
  if (ended.has_failure()) {
    const v1::RankFailed& failure = ended.failure();
    // An older coordinator's failures have no cause.
    if (failure.cause() != v1::FAILURE_CAUSE_UNSPECIFIED) {
      std::string cause = CauseName(failure.cause());
      fields["cause"] = cause;
      fields["scope"] = ScopeName(failure.cause());
      std::replace(cause.begin(), cause.end(), '_', ' ');
      absl::StrAppend(&text, ", ", cause);
    }
    const bool unknown = failure.cause() == v1::FAILURE_CAUSE_REPLICAS_DIFFER;
    fields["culprit"] = {{"rank", unknown ? json(nullptr) : json(failure.rank())},
                         {"node", CulpritNode(failure.rank())},
                         {"error", failure.error()},
                         {"exit_code", failure.exit_code()},
                         {"signal", failure.signal()}};
  }
  Add(fact, "generation_ended", text + After(": ", ended.reason()), std::move(fields));
  started_ms_ = 0;
  ended_reason_ = ended.reason();
}

void RunEvents::OnGranted(const v1::Fact& fact) {
  const v1::WindowGranted& granted = fact.window_granted();
  Add(fact, "window_granted",
      absl::StrCat("steps ", granted.window().first_step(), " to ", granted.window().end_step(),
                   " granted"),
      {{"generation", granted.key().generation()},
       {"first_step", granted.window().first_step()},
       {"end_step", granted.window().end_step()}});
  taken_.back().event.routine = true;
}

void RunEvents::OnRolledBack(const v1::Fact& fact) {
  const v1::WindowsRolledBack& back = fact.windows_rolled_back();
  const v1::Window& window = back.window();
  const std::string text =
      back.lost_steps() > 0
          ? absl::StrCat("rolled back to step ", window.first_step(), ": ",
                         FormatNumberOf(back.lost_steps(), "step"), " done and lost, ",
                         FormatCount(static_cast<double>(back.lost_tokens())), " tokens")
          : absl::StrCat("rolled back to step ", window.first_step(), ": steps up to ",
                         window.end_step(), " were granted, none is lost");
  Add(fact, "windows_rolled_back", text,
      {{"generation", back.key().generation()},
       {"first_step", window.first_step()},
       {"end_step", window.end_step()},
       {"lost_steps", back.lost_steps()},
       {"lost_tokens", back.lost_tokens()}});
}

void RunEvents::OnCommitted(const v1::Fact& fact) {
  const v1::CheckpointCommittedFact& committed = fact.checkpoint_committed();
  Add(fact, "checkpoint_committed",
      absl::StrCat("checkpoint ", NameOf(committed.folder()), " committed, ",
                   FormatBytes(static_cast<double>(committed.bytes())), ", ",
                   FormatCount(static_cast<double>(committed.tokens())), " tokens so far"),
      {{"generation", committed.key().generation()},
       {"step", committed.position().step()},
       {"folder", committed.folder()},
       {"bytes", committed.bytes()},
       {"tokens", committed.tokens()}});
}

void RunEvents::OnDiscarded(const v1::Fact& fact) {
  const v1::CheckpointDiscarded& discarded = fact.checkpoint_discarded();
  Add(fact, "checkpoint_discarded",
      absl::StrCat("checkpoint ", NameOf(discarded.folder()),
                   discarded.committed() ? " given up" : " not committed",
                   After(": ", discarded.reason())),
      {{"step", discarded.step()},
       {"folder", discarded.folder()},
       {"was_committed", discarded.committed()},
       {"reason", discarded.reason()}});
  taken_.back().event.routine = discarded.committed() && discarded.reason().starts_with("retired:");
}

void RunEvents::OnRunEnded(const v1::Fact& fact) {
  const v1::RunEnded& ended = fact.run_ended();
  active_ = false;
  // The line on the generation's end has said it.
  const std::string reason = ended.reason() == ended_reason_ ? "" : ended.reason();
  Add(fact, "run_ended",
      absl::StrCat("run ", RunStateName(ended.state()), After(": ", reason),
                   ended.state() == v1::RUN_STATE_FAILED && ended.retryable()
                       ? "; paceline resume may go on"
                       : ""),
      {{"state", RunStateName(ended.state())},
       {"reason", ended.reason()},
       {"tokens", ended.tokens()},
       {"retryable", ended.retryable()}});
}

std::string FormatLocalTime(std::int64_t wall_ms) {
  const std::time_t seconds = wall_ms / 1000;
  std::tm parts{};
  ::tzset();
  if (localtime_r(&seconds, &parts) == nullptr) return "?";
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

std::string FormatUtcTime(std::int64_t wall_ms) {
  const std::time_t seconds = wall_ms / 1000;
  std::tm parts{};
  if (gmtime_r(&seconds, &parts) == nullptr) return "?";
  char date[40];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
  char text[48];
  std::snprintf(text, sizeof text, "%s.%03dZ", date, static_cast<int>(wall_ms % 1000));
  return text;
}

std::optional<std::int64_t> ParseSince(const std::string& text, std::int64_t now_ms) {
  constexpr std::pair<char, std::int64_t> kUnits[] = {
      {'s', 1000}, {'m', 60'000}, {'h', 3'600'000}, {'d', 86'400'000}};
  constexpr std::int64_t kMax = 1'000'000;  // of any unit
  for (const auto& [letter, unit_ms] : kUnits) {
    std::int64_t count = 0;
    if (text.size() < 2 || text.back() != letter) continue;
    const char* end = text.data() + text.size() - 1;
    const auto parsed = std::from_chars(text.data(), end, count);
    if (parsed.ec != std::errc() || parsed.ptr != end || count < 0 || count > kMax) return {};
    return now_ms - count * unit_ms;
  }
  for (const char* format :
       {"%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d"}) {
    std::tm parts{};
    const char* end = ::strptime(text.c_str(), format, &parts);
    if (end == nullptr || *end != '\0') continue;
    parts.tm_isdst = -1;
    return static_cast<std::int64_t>(std::mktime(&parts)) * 1000;
  }
  return std::nullopt;
}

}  // namespace paceline::cli
