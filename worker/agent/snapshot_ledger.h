// Which snapshots a node holds, of its own ranks' state and as copies of other nodes', and which of
// them a run could go on from.
// Pure: told of what happens, it reads no file.
// Invariant: what Held tells lies in the run's lineage, and is of the state that ranks of the named
// generation have.
// Threading: not safe by itself; AgentCore's.
#pragma once

#include <cstdint>
#include <map>
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
  bool copy = false;  // of another node's
};

enum class SnapshotPlace { kNowhere, kOwn, kCopy };

// The files of a rank's snapshots.
struct SnapshotFiles {
  std::int32_t rank = 0;
  bool copies = false;
};

class SnapshotLedger {
 public:
  explicit SnapshotLedger(const std::vector<FoundSnapshot>& found);

  // A generation begins here. What is held stays of use where the generation goes on from memory
  // and the node had a part in the one before: up to its first step. True: all that was held of the
  // run is of no use, and its files are to go.
  bool OnStart(const v1::StartGeneration& start);
  // Returns the files that nobody can want any more: those of ranks that the node neither has nor
  // copies, once a rank has moved on by two snapshots.
  std::vector<SnapshotFiles> OnTaken(const v1::GenerationKey& key, std::int32_t rank,
                                     std::int64_t step);
  void OnCopied(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step);
  // The copy is being written over.
  void OnLost(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step);
  // What lies here of it is not to be begun from: another node's was named instead.
  void Drop(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step);
  // The run goes on without what is held up to this generation. True: something may lie here.
  bool Forget(const v1::GenerationKey& key);

  // Where the state that a generation's rank takes up lies.
  SnapshotPlace Find(const v1::GenerationKey& key, std::int32_t rank, std::int64_t step) const;
  // What is held of the generation; nothing where the run's newest is another.
  v1::GenerationGone Held(const v1::GenerationKey& key) const;
  std::vector<v1::GenerationKey> Runs() const;  // that have or had anything here, at their newest
  // Of every run of which anything is held.
  std::vector<v1::GenerationGone> AllHeld() const;

 private:
  using Steps = std::map<std::int32_t, std::set<std::int64_t>>;  // by rank, at most two
  struct Run {
    std::uint64_t generation = 0;
    std::int64_t start_step = 0;
    std::set<std::int32_t> ranks;   // that the node has
    std::set<std::int32_t> copied;  // that it copies
    Steps own;
    Steps copies;
  };
  Run* Find(const v1::GenerationKey& key);

  std::map<std::string, Run> runs_;
};

}  // namespace paceline
