// The journal's past: what a snapshot made superfluous for replay, kept for questions about what
// happened (events, audit).
//
//   STATE/history/epoch-00000007.journal          cut by the snapshot that followed
//   STATE/history/snapshot-00000000000000012345   the state after that fact, where it was no larger
//                                                 than the files that left with it
//
// Bounded: the oldest files go first, and with them the snapshots that lie before what is left.
// Invariant: a file is either in the state folder or in the history, whole; replay reads nothing
// here, so that whatever becomes of the history no coordinator starts otherwise or later.
// Threading: a HistoryWriter belongs to the journal's owner; ReadHistory from any thread, also
// while a coordinator writes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/status.h"
#include "coordinator/storage/state_folder.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::storage {

// Moves files out of a state folder. Best effort: what cannot be moved stays for the next time.
class HistoryWriter {
 public:
  // bytes_max: 0 keeps nothing.
  HistoryWriter(std::string state_folder, std::int64_t bytes_max);

  void TakeJournal(JournalFileId id);
  // After the journals that left with it.
  void TakeSnapshot(std::uint64_t index);
  // Removes the oldest files until the rest fits.
  void Prune() const;

 private:
  // False: nothing is kept, or there is no folder to keep it in.
  bool MakeFolder();

  const std::string state_folder_;
  const std::string folder_;
  const std::int64_t bytes_max_;
  bool made_ = false;
  std::int64_t journal_bytes_ = 0;  // taken
};

// What a state folder still tells.
struct HistoryRead {
  std::uint64_t first_index = 1;  // of the first fact; above 1: what came before is gone
  std::uint64_t last_index = 0;   // 0: no fact
};

// Every fact that the folder holds, in order, those that a snapshot replaced included; a snapshot
// comes right after the fact whose state it is, or first where the facts before it are gone. A torn
// tail of the last file is passed over, as replay does. The callbacks' errors end it.
// kDataLoss: damage, a file that is missing between others, or facts that are missing below a
// snapshot. kNotFound: no such folder. kFailedPrecondition: a newer version. kAborted: files went
// while they were read; read again.
absl::StatusOr<HistoryRead> ReadHistory(
    const std::string& state_folder,
    const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
    const std::function<absl::Status(const v1::Fact&)>& on_fact);

}  // namespace paceline::storage
