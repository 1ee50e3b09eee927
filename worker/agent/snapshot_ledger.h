// Which snapshots of its ranks' state a node holds, and which of them a run could go on from.
// Pure: told of what happens, it reads no file.
// Invariant: what Held tells lies in the run's lineage, and is of the named generation's layout.
// Threading: not safe by itself; AgentCore's.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "paceline/v1/coordinator.pb.h"

namespace paceline {

// A whole snapshot that a former agent of the node has left.
struct FoundSnapshot {
  std::string run_id;
  std::uint64_t generation = 0;
  std::int32_t rank = 0;
  std::int64_t step = 0;
};

class SnapshotLedger {
 public:
  explicit SnapshotLedger(const std::vector<FoundSnapshot>& found);

  // A generation begins here: it cannot go back to what is of another layout, nor to steps after
  // its start.
  void OnStart(const v1::StartGeneration& start);
  void OnTaken(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step);
  // The rank could not begin: what is held of it is not trusted any more.
  void Distrust(const v1::GenerationKey& key, std::int32_t rank);
  // The run will not be resumed here. True: something was held.
  bool Forget(const std::string& run_id) { return runs_.erase(run_id) > 0; }

  // What is held of the generation; nothing where the run's newest is another.
  v1::GenerationGone Held(const v1::GenerationKey& key) const;
  std::vector<std::string> Runs() const;  // that have or had anything here
  // Of every run of which anything is held.
  std::vector<v1::GenerationGone> AllHeld() const;

 private:
  struct Run {
    std::uint64_t generation = 0;
    std::optional<v1::Layout> layout;                      // none: a former agent knew
    std::map<std::int32_t, std::set<std::int64_t>> steps;  // by rank, at most two
  };
  Run* Find(const v1::GenerationKey& key);

  std::map<std::string, Run> runs_;
};

}  // namespace paceline
