#include "coordinator/storage/journal_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "coordinator/storage/journal.h"

namespace paceline::storage {
namespace {

// A file that holds less than its header was cut off while it was being made. No header is
// longer, so a longer file without one is damaged.
constexpr std::int64_t kHeaderBytesMax = 4096;

absl::Status CheckVersion(const std::string& path, std::uint32_t version) {
  if (version <= kJournalVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path, " was written by journal version ", version, ", and this program reads ",
                   "versions up to ", kJournalVersion, ": use the newer program"));
}

template <typename Message>
bool Parse(std::string_view payload, Message* message) {
  return message->ParseFromArray(payload.data(), static_cast<int>(payload.size()));
}

// The first bytes of a file, and how long it is.
struct Beginning {
  std::string bytes;
  std::int64_t size = 0;
};

absl::StatusOr<Beginning> ReadBeginning(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return ErrnoStatus(errno, absl::StrCat("opening ", path));
  Beginning beginning;
  beginning.bytes.resize(kHeaderBytesMax);
  struct stat facts = {};
  const ssize_t count = ::pread(file, beginning.bytes.data(), beginning.bytes.size(), 0);
  const bool read = count >= 0 && ::fstat(file, &facts) == 0;
  const int error = errno;
  ::close(file);
  if (!read) return ErrnoStatus(error, absl::StrCat("reading ", path));
  beginning.bytes.resize(static_cast<std::size_t>(count));
  beginning.size = facts.st_size;
  return beginning;
}

}  // namespace

absl::Status DamageAt(const std::string& path, std::int64_t offset, const std::string& what) {
  return absl::DataLossError(absl::StrCat(path, " is damaged at offset ", offset, ": ", what,
                                          ". Restore the file from a backup; nothing was changed"));
}

absl::StatusOr<Scan> ScanRecords(const std::string& path, std::string_view bytes) {
  Scan scan;
  while (const auto record = ReadRecordAt(bytes, scan.end)) {
    scan.records.push_back(*record);
    scan.end = record->end;
  }
  if (const auto next = FindRecord(bytes, scan.end)) {
    return DamageAt(path, scan.end,
                    absl::StrCat("no whole record there, but one follows at offset ", *next));
  }
  return scan;
}

absl::StatusOr<std::optional<v1::JournalHeader>> ReadJournalHeader(const std::string& path,
                                                                   JournalFileId id) {
  ASSIGN_OR_RETURN(const Beginning beginning, ReadBeginning(path));
  const auto record = ReadRecordAt(beginning.bytes, 0);
  if (!record) {
    if (beginning.size > kHeaderBytesMax || FindRecord(beginning.bytes, 0)) {
      return DamageAt(path, 0, "no whole header");
    }
    return std::nullopt;
  }
  v1::JournalHeader header;
  if (record->kind != RecordKind::kJournalHeader || !Parse(record->payload, &header)) {
    return DamageAt(path, 0, "the first record is no header");
  }
  RETURN_IF_ERROR(CheckVersion(path, header.version()));
  if (header.epoch() != id.epoch || header.segment() != id.segment) {
    return DamageAt(path, 0,
                    absl::StrCat("its header is that of epoch ", header.epoch(), ", segment ",
                                 header.segment()));
  }
  return header;
}

absl::StatusOr<std::vector<ChainFile>> FindChain(
    const std::vector<JournalFileId>& ids, const std::function<std::string(JournalFileId)>& path_of,
    std::uint64_t from, std::vector<std::string>* notes) {
  std::vector<ChainFile> chain;  // newest first until returned
  for (auto id = ids.rbegin(); id != ids.rend(); ++id) {
    if (!chain.empty()) {
      const v1::JournalHeader& next = chain.back().header;
      if (next.first_index() <= from + 1 || next.former().empty()) break;
      if (next.former() != JournalName(*id)) continue;
    }
    const std::string path = path_of(*id);
    ASSIGN_OR_RETURN(const std::optional<v1::JournalHeader> header, ReadJournalHeader(path, *id));
    if (!header && !chain.empty()) {
      return DamageAt(path, 0, "no whole header, though a later file needs it");
    }
    if (!header) {
      notes->push_back(absl::StrCat(path, " was cut off while it was being made; ignored"));
      continue;
    }
    std::optional<std::int64_t> sealed;
    if (!chain.empty()) sealed = chain.back().header.former_length();
    chain.push_back({*id, path, *header, sealed});
  }
  return std::vector<ChainFile>(chain.rbegin(), chain.rend());
}

absl::StatusOr<FactsRead> ReadJournalFacts(const std::string& path,
                                           std::optional<std::int64_t> sealed, std::uint64_t passed,
                                           std::uint64_t* last_index, const OnFact& on_fact) {
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kJournalFileBytesMax));
  std::string_view bytes = content;
  if (sealed) {
    if (static_cast<std::int64_t>(bytes.size()) < *sealed) {
      return DamageAt(path, static_cast<std::int64_t>(bytes.size()),
                      absl::StrCat("it ends there, and had ", *sealed, " bytes when sealed"));
    }
    bytes = bytes.substr(0, static_cast<std::size_t>(*sealed));
  }
  ASSIGN_OR_RETURN(const Scan scan, ScanRecords(path, bytes));
  const std::int64_t torn = static_cast<std::int64_t>(bytes.size()) - scan.end;
  if (torn > 0 && sealed) return DamageAt(path, scan.end, "no whole record there");
  std::int64_t offset = 0;
  for (const RecordView& record : scan.records) {
    v1::FactBatch batch;
    if (offset > 0 && (record.kind != RecordKind::kFactBatch || !Parse(record.payload, &batch))) {
      return DamageAt(path, offset, "the record there holds no facts");
    }
    for (const v1::Fact& fact : batch.facts()) {
      if (fact.index() <= passed) continue;
      if (fact.index() != *last_index + 1) {
        return DamageAt(path, offset,
                        absl::StrCat("fact ", fact.index(), " follows fact ", *last_index));
      }
      RETURN_IF_ERROR(Annotate(on_fact(fact), absl::StrCat(path, ", record at offset ", offset)));
      *last_index = fact.index();
    }
    offset = record.end;
  }
  return FactsRead{.end = scan.end, .torn = torn};
}

absl::StatusOr<v1::StateSnapshot> ReadSnapshotFile(const std::string& path, std::uint64_t index) {
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kJournalFileBytesMax));
  const auto header_record = ReadRecordAt(bytes, 0);
  v1::SnapshotHeader header;
  if (!header_record || header_record->kind != RecordKind::kSnapshotHeader ||
      !Parse(header_record->payload, &header)) {
    return DamageAt(path, 0, "no whole header");
  }
  RETURN_IF_ERROR(CheckVersion(path, header.version()));
  const auto record = ReadRecordAt(bytes, header_record->end);
  v1::StateSnapshot snapshot;
  if (!record || record->kind != RecordKind::kSnapshot || header.index() != index ||
      !Parse(record->payload, &snapshot) || snapshot.index() != index) {
    return DamageAt(path, header_record->end, "no whole snapshot");
  }
  return snapshot;
}

}  // namespace paceline::storage
