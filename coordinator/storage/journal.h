// The journal: append-only files of checksummed records, in a state folder that may lie on a
// shared file system, and snapshots that cut what must be replayed.
//
//   STATE/epoch-00000007.journal          the first file of epoch 7
//   STATE/epoch-00000007.0002.journal     the next one, begun after a snapshot
//   STATE/snapshot-00000000000000012345   the state after that fact
//   STATE/history/                        files that were cut; replay never reads them (history.h)
//   STATE/epoch-00000007.lease            its coordinator lives (lease.h)
//
// A file is a row of records: u64 xxh3-64 (seeded with the record's offset) of what follows,
// u32 length, u32 kind, payload. The first record is a JournalHeader, each further one is the
// FactBatch of one Append. Each file's header names the file before it and how many bytes of it
// count ("seals" it), so a former coordinator that writes on is heard by nobody.
//
// A *torn tail* is what an interrupted Append leaves: bytes at the end of the last file which
// are no whole record and which no whole record follows. Append n+1 begins only after n is on
// disk, so nothing that was acknowledged stands in a torn tail; it is cut, and said so. (Damage
// to the very last record of a coordinator that was killed looks the same.) Anything else that
// does not read - a bad record before a whole one, in a sealed file, or in a snapshot - is
// kDataLoss, naming file and offset.
//
// Invariant: Append returns after its facts are on disk, whole, in order, and while no newer
// epoch exists; several facts of one Append come back all or not at all.
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

// Raised with each new kind of fact: 2 has drains, moves, nodes' failures and first steps.
inline constexpr std::uint32_t kJournalVersion = 2;

// What replay found.
struct Replay {
  Epoch last_epoch{0};             // 0: an empty folder. The next epoch is last_epoch + 1
  std::uint64_t last_index = 0;    // of the last whole fact
  std::vector<std::string> notes;  // for the log: "cut a torn tail of 17 bytes from ..."
};

class Journal {
 public:
  virtual ~Journal() = default;
  // Facts with index > the snapshot's, in order. The callbacks' errors end the replay.
  // kDataLoss: damage (see above). kFailedPrecondition: written by a newer version.
  virtual absl::StatusOr<Replay> Read(
      const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
      const std::function<absl::Status(const v1::Fact&)>& on_fact) = 0;
  // After Read: creates epoch `epoch`'s file exclusively, seals the former file and cuts its torn
  // tail. kAlreadyExists: somebody else has that epoch. kAborted: somebody appended since Read;
  // read again.
  virtual absl::Status OpenEpoch(Epoch epoch) = 0;
  // Writes all facts and one fdatasync (group commit). After an error nothing more is accepted.
  // kFailedPrecondition: a newer epoch exists. kResourceExhausted: the disk is full.
  virtual absl::Status Append(const std::vector<v1::Fact>& facts) = 0;
  // Writes a snapshot of the state after the last appended fact durably, begins a new file, and
  // moves the files that replay does not need any more to the history. A failure to write the
  // snapshot itself changes nothing; appending goes on.
  virtual absl::Status WriteSnapshot(const v1::StateSnapshot& snapshot) = 0;
};

// What the history may take of the disk.
inline constexpr std::int64_t kHistoryBytesMax = std::int64_t{1} << 30;

// The journal in `folder` (made if missing, mode 0700). read_only: nothing is created or cut; for a
// look at a folder whose coordinator lives or is gone.
absl::StatusOr<std::unique_ptr<Journal>> OpenFileJournal(
    const std::string& folder, bool read_only, std::int64_t history_bytes_max = kHistoryBytesMax);

}  // namespace paceline::storage
