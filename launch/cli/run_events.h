// What happened in a run, out of the facts of its coordinator's journal: a line and a JSON object
// for each event.
// Invariant: events are in the journal's order; what only concerns other runs is left out, and so
// are charges.
// Threading: one thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "paceline/v1/journal.pb.h"

namespace paceline::cli {

struct RunEvent {
  std::uint64_t index = 0;  // of its fact
  std::int64_t at_ms = 0;
  std::string kind;      // "generation_started"
  std::string text;      // one line
  bool routine = false;  // happens all the time: a window granted, a checkpoint retired by `keep`
  nlohmann::json fields = nlohmann::json::object();
};

class RunEvents {
 public:
  explicit RunEvents(std::string run_id) : run_id_(std::move(run_id)) {}

  // In the journal's order, snapshots in their places (storage::ReadHistory).
  void Take(const v1::Fact& fact);
  void Take(const v1::StateSnapshot& snapshot);

  // Whether any fact or snapshot knows the run.
  bool known() const { return known_; }
  // Whether the run's first submission is surely among the facts.
  bool whole() const { return known_ && !begun_before_; }
  // Every event so far.
  std::vector<RunEvent> Events() const;

 private:
  void Add(const v1::Fact& fact, std::string kind, std::string text, nlohmann::json fields);
  // An event of a node counts when the run has used the node by the end.
  void AddOfNode(const v1::Fact& fact, std::uint64_t node_id, std::string kind, std::string text,
                 nlohmann::json fields);
  bool IsOfRun(const v1::Fact& fact) const;
  std::string NodeName(std::uint64_t node_id) const;
  // "ranks 0-1 on node-0, 2-3 on node-1".
  std::string PlacementText() const;
  std::string SourcesText() const;
  std::string CulpritNode(std::int32_t rank) const;

  void OnEpoch(const v1::Fact& fact);
  void OnNodeJoined(const v1::Fact& fact);
  void OnNodeLeft(const v1::Fact& fact);
  void OnNodeDrained(const v1::Fact& fact);
  void OnNodeFailed(const v1::Fact& fact);
  void OnSubmitted(const v1::Fact& fact);
  void OnStarted(const v1::Fact& fact);
  void OnFirstStep(const v1::Fact& fact);
  void OnEnded(const v1::Fact& fact);
  void OnGranted(const v1::Fact& fact);
  void OnRolledBack(const v1::Fact& fact);
  void OnCommitted(const v1::Fact& fact);
  void OnDiscarded(const v1::Fact& fact);
  void OnRunEnded(const v1::Fact& fact);

  struct Taken {
    RunEvent event;
    std::optional<std::uint64_t> node_id;
  };

  const std::string run_id_;
  bool known_ = false;
  bool begun_before_ = false;
  bool active_ = false;  // submitted, and not ended
  std::vector<Taken> taken_;
  std::optional<Taken> first_epoch_;            // of the coordinator that the run was submitted to
  std::map<std::uint64_t, std::string> names_;  // of nodes
  std::set<std::uint64_t> used_;                // nodes
  v1::GenerationStarted plan_;                  // of the latest generation
  std::int64_t started_ms_ = 0;                 // that it began at; 0: unknown
  std::string ended_reason_;                    // of the latest generation's end
};

// "2024-06-11 11:30:05" of milliseconds since the Unix epoch, in the machine's time zone.
std::string FormatLocalTime(std::int64_t wall_ms);

// "2024-06-11T09:30:05.123Z".
std::string FormatUtcTime(std::int64_t wall_ms);

// What `--since` says: "90s", "30m", "2h" or "3d" before `now_ms`, or a local time
// "2024-06-11[ 11:30[:05]]" (or with a T). Milliseconds since the Unix epoch; nothing: neither.
std::optional<std::int64_t> ParseSince(const std::string& text, std::int64_t now_ms);

}  // namespace paceline::cli
