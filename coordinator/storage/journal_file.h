// One file of a journal, or one snapshot, as it is read: headers, facts, and damage told from a
// torn tail (journal.h).
// Invariant: what is handed out was written at its place, whole; nothing is changed on disk.
// Threading: any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "coordinator/storage/record.h"
#include "coordinator/storage/state_folder.h"
#include "paceline/v1/journal.pb.h"

namespace paceline::storage {

inline constexpr std::int64_t kJournalFileBytesMax = std::int64_t{8} << 30;

using OnFact = std::function<absl::Status(const v1::Fact&)>;

// kDataLoss that names file and offset.
absl::Status DamageAt(const std::string& path, std::int64_t offset, const std::string& what);

// The whole records of a file, and where they end.
struct Scan {
  std::vector<RecordView> records;
  std::int64_t end = 0;
};

// Bytes after `end` are a torn tail, and no damage: no whole record follows. kDataLoss: one does.
absl::StatusOr<Scan> ScanRecords(const std::string& path, std::string_view bytes);

// The header of the file at `path`, which its name says is `id`'s. Nothing: it was cut off while
// it was being made, and holds no fact. kDataLoss: damaged; kFailedPrecondition: newer version.
absl::StatusOr<std::optional<v1::JournalHeader>> ReadJournalHeader(const std::string& path,
                                                                   JournalFileId id);

// One file of a chain, each of which names the one before it.
struct ChainFile {
  JournalFileId id;
  std::string path;
  v1::JournalHeader header;
  std::optional<std::int64_t> sealed;  // bytes that count; nothing: the last file
};

// Oldest first: the files that hold what comes after fact `from`, as far back as they are among
// `ids` (ascending). A file that was cut off while it was being made is noted and passed over.
absl::StatusOr<std::vector<ChainFile>> FindChain(
    const std::vector<JournalFileId>& ids, const std::function<std::string(JournalFileId)>& path_of,
    std::uint64_t from, std::vector<std::string>* notes);

struct FactsRead {
  std::int64_t end = 0;   // bytes that count
  std::int64_t torn = 0;  // bytes behind them
};

// The file's facts in order, each one above `*last_index`, which follows; those up to `passed` are
// passed over. `sealed`: the bytes that count; nothing: the chain's last file, which alone may have
// a torn tail. `on_fact`'s errors end it.
absl::StatusOr<FactsRead> ReadJournalFacts(const std::string& path,
                                           std::optional<std::int64_t> sealed, std::uint64_t passed,
                                           std::uint64_t* last_index, const OnFact& on_fact);

absl::StatusOr<v1::StateSnapshot> ReadSnapshotFile(const std::string& path, std::uint64_t index);

}  // namespace paceline::storage
