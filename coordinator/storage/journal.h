// The journal: one append-only file of checksummed records for each epoch, in a state folder
// that may lie on a shared file system, and snapshots that cut what must be replayed.
//   STATE/epoch-00000001.journal ...    STATE/snapshot-INDEX
// Record: u32 length, u32 kind/version, u64 xxh3-64 of what follows, payload (a serialized Fact).
// Invariant: Append returns after the facts are on disk, whole and in order; a torn tail is cut
// to the last whole record, and said so.
// Threading: one owner.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/status.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::storage {

inline constexpr std::uint32_t kJournalVersion = 1;

// What replay found.
struct Replay {
  Epoch last_epoch{0};           // 0: an empty folder
  std::uint64_t last_index = 0;  // of the last whole fact
  std::vector<std::string> notes;  // for the log: "cut a torn tail of 17 bytes from ..."
};

class Journal {
 public:
  virtual ~Journal() = default;
  // Facts with index > the snapshot's, in order. The callbacks' errors end the replay.
  virtual absl::StatusOr<Replay> Read(
      const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
      const std::function<absl::Status(const v1::Fact&)>& on_fact) = 0;
  // Creates epoch `epoch`'s file exclusively. kAlreadyExists: somebody else has that epoch.
  virtual absl::Status OpenEpoch(Epoch epoch) = 0;
  // Writes all facts and one fsync (group commit). After an error nothing more is accepted.
  virtual absl::Status Append(const std::vector<v1::Fact>& facts) = 0;
  // Writes a snapshot durably, then removes journals that lie wholly before it and were sealed.
  virtual absl::Status WriteSnapshot(const v1::StateSnapshot& snapshot) = 0;
};

// The journal in `folder` (made if missing, mode 0700). read_only: nothing is created, cut or
// locked; for a look at a folder whose coordinator lives or is gone.
absl::StatusOr<std::unique_ptr<Journal>> OpenFileJournal(const std::string& folder,
                                                         bool read_only);

}  // namespace paceline::storage
