// Walks a run's facts and derives, apart from the coordinator's own state, which steps count in the
// lineage of its committed checkpoints.
//
//   windows granted --> trained --> committed with a checkpoint   (counts)
//                              \--> rolled back                   (does not)
//
// Invariant: what Finish returns has been checked fact by fact: windows follow one another without
// a gap or an overlap, each is granted again only after it was rolled back, a checkpoint commits
// what was granted, its ledger digest follows from the one before it and the windows between, its
// data position is the one of its step, and a generation begins where the lineage ends.
// Threading: one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/manifest.h"
#include "common/run_file.h"
#include "common/status.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::cli {

// Steps [first_step, end_step), which a committed checkpoint made count.
struct CommittedRange {
  std::int64_t first_step = 0;
  std::int64_t end_step = 0;
  std::uint64_t generation = 0;
  std::string folder;
  std::string manifest_digest;
  std::string ledger_digest;
  bool kept = true;      // its checkpoint was neither retired nor found damaged
  bool vouched = false;  // a snapshot says so; the facts are gone
};

struct Lineage {
  v1::SubmitRunRequest request;  // the latest
  RunFile file;                  // parsed from it
  std::vector<CommittedRange> ranges;
  std::int64_t proven_from = 0;      // steps before it are vouched for by a snapshot alone
  std::uint64_t snapshot_index = 0;  // of that snapshot's last fact; 0: none was needed
  std::int64_t committed_step = 0;
  std::int64_t granted_until = 0;
  std::vector<std::uint64_t> generations;  // of the facts
  std::int64_t rolled_back_steps = 0;      // done and not counted, as far as facts tell
  std::int64_t rolled_back_tokens = 0;
  std::string ledger_digest;
};

class LineageAudit {
 public:
  explicit LineageAudit(std::string run_id) : run_id_(std::move(run_id)) {}

  // In the journal's order, snapshots in their places (storage::ReadHistory). kDataLoss: the fact
  // or snapshot does not follow from what came before; names it.
  absl::Status Take(const v1::Fact& fact);
  absl::Status Take(const v1::StateSnapshot& snapshot);

  // kNotFound: nobody spoke of the run. kDataLoss: facts of it are there, but neither its beginning
  // nor a snapshot to begin from, or the ranges do not cover the steps once.
  absl::StatusOr<Lineage> Finish() const;

 private:
  struct Window {
    std::int64_t first_step;
    std::int64_t end_step;
  };

  absl::Status TakeBody(const v1::Fact& fact);
  absl::Status Take(const v1::RunSubmitted& submitted);
  absl::Status Take(const v1::GenerationStarted& started);
  absl::Status Take(const v1::GenerationEnded& ended);
  absl::Status Take(const v1::WindowGranted& granted);
  absl::Status Take(const v1::WindowsRolledBack& back);
  absl::Status Take(const v1::CheckpointCommittedFact& committed);
  absl::Status Take(const v1::CheckpointDiscarded& discarded);
  absl::Status Take(const v1::RunEnded& ended);
  absl::Status BeginFrom(const v1::SnapshotRun& run, std::uint64_t index);
  absl::Status Compare(const v1::SnapshotRun& run) const;
  absl::Status CheckOpen(const v1::GenerationKey& key) const;
  absl::Status TakeRunFile(const v1::SubmitRunRequest& request);

  std::int64_t CommittedStep() const;
  std::int64_t GrantedUntil() const;
  std::int64_t TokensAt(std::int64_t step) const;
  std::string LedgerDigest() const;
  // After the uncommitted windows up to `step`.
  std::string LedgerDigestAt(std::int64_t step) const;

  const std::string run_id_;
  std::uint64_t last_index_ = 0;
  std::int64_t last_ms_ = 0;
  bool from_first_fact_ = false;
  bool skipped_ = false;  // facts of the run came before anything to begin from
  bool begun_ = false;
  bool open_ = false;
  std::uint64_t generation_ = 0;
  std::vector<Window> windows_;  // granted, neither committed nor rolled back
  Lineage lineage_;
};

// Whether a committed checkpoint's manifest says what the lineage says. kDataLoss: names the field.
absl::Status CheckManifest(const Lineage& lineage, const CommittedRange& range,
                           const Manifest& manifest);

}  // namespace paceline::cli
