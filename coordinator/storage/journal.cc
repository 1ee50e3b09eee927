#include "coordinator/storage/journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/files.h"
#include "coordinator/storage/record.h"
#include "coordinator/storage/state_folder.h"

namespace paceline::storage {
namespace {

constexpr std::int64_t kFileBytesMax = std::int64_t{8} << 30;
// A file that holds less than its header was cut off while it was being made. No header is
// longer, so a longer file without one is damaged.
constexpr std::int64_t kHeaderBytesMax = 4096;

// Blocks allocated ahead of the journal's end, and what of them must be left before more are taken.
constexpr std::int64_t kRoomBytes = std::int64_t{1} << 20;
constexpr std::int64_t kRoomBytesMin = std::int64_t{256} << 10;

absl::Status DamageAt(const std::string& path, std::int64_t offset, const std::string& what) {
  return absl::DataLossError(absl::StrCat(path, " is damaged at offset ", offset, ": ", what,
                                          ". Restore the file from a backup; nothing was changed"));
}

absl::Status CheckVersion(const std::string& path, std::uint32_t version) {
  if (version <= kJournalVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path, " was written by journal version ", version, ", and this program reads ",
                   "versions up to ", kJournalVersion, ": use the newer program"));
}

// The whole records of a file, and where they end.
struct Scan {
  std::vector<RecordView> records;
  std::int64_t end = 0;
};

// Bytes after `end` are a torn tail, and no damage: no whole record follows.
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

// One file of the chain that replay walks.
struct ChainFile {
  JournalFileId id;
  v1::JournalHeader header;
  std::optional<std::int64_t> sealed;  // bytes that count; nothing: the last file
};

class FileJournal : public Journal {
 public:
  FileJournal(std::string folder, int lock) : folder_(std::move(folder)), lock_(lock) {}
  ~FileJournal() override {
    if (file_ >= 0) ::close(file_);
    if (lock_ >= 0) ::close(lock_);
  }
  FileJournal(const FileJournal&) = delete;
  FileJournal& operator=(const FileJournal&) = delete;

  absl::StatusOr<Replay> Read(
      const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
      const std::function<absl::Status(const v1::Fact&)>& on_fact) override;
  absl::Status OpenEpoch(Epoch epoch) override;
  absl::Status Append(const std::vector<v1::Fact>& facts) override;
  absl::Status WriteSnapshot(const v1::StateSnapshot& snapshot) override;

 private:
  std::string PathOf(const std::string& name) const { return absl::StrCat(folder_, "/", name); }

  absl::StatusOr<v1::StateSnapshot> ReadSnapshot(std::uint64_t index) const;
  // Nothing: the file was cut off while it was being made, and holds no fact.
  absl::StatusOr<std::optional<v1::JournalHeader>> ReadHeader(JournalFileId id) const;
  // Oldest first: the files that hold what comes after fact `from`.
  absl::StatusOr<std::vector<ChainFile>> FindChain(const StateFolder& found, std::uint64_t from,
                                                   Replay& replay) const;
  absl::Status ReadFacts(const ChainFile& file,
                         const std::function<absl::Status(const v1::Fact&)>& on_fact,
                         Replay& replay);
  absl::Status BeginFile(JournalFileId id);
  absl::Status WriteRecord(RecordKind kind, const std::string& payload);
  void KeepRoom(std::int64_t bytes);
  absl::Status CheckFormerUnchanged() const;
  // kFailedPrecondition: a newer epoch exists.
  absl::Status CheckNotReplaced() const;
  void RemoveUnneeded(std::uint64_t snapshot_index) const;

  const std::string folder_;
  const int lock_;  // -1: read-only
  // The last file of the chain, and the bytes of it that count.
  std::optional<JournalFileId> last_;
  std::int64_t end_ = 0;
  std::int64_t room_end_ = 0;  // blocks are allocated up to here
  std::uint64_t last_index_ = 0;
  bool replayed_ = false;
  int file_ = -1;        // open for appending: `last_`
  absl::Status broken_;  // the first error; nothing is accepted after
};

absl::StatusOr<v1::StateSnapshot> FileJournal::ReadSnapshot(std::uint64_t index) const {
  const std::string path = PathOf(SnapshotName(index));
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kFileBytesMax));
  const auto header_record = ReadRecordAt(bytes, 0);
  v1::SnapshotHeader header;
  if (!header_record || header_record->kind != RecordKind::kSnapshotHeader ||
      !header.ParseFromArray(header_record->payload.data(),
                             static_cast<int>(header_record->payload.size()))) {
    return DamageAt(path, 0, "no whole header");
  }
  RETURN_IF_ERROR(CheckVersion(path, header.version()));
  const auto record = ReadRecordAt(bytes, header_record->end);
  v1::StateSnapshot snapshot;
  if (!record || record->kind != RecordKind::kSnapshot || header.index() != index ||
      !snapshot.ParseFromArray(record->payload.data(), static_cast<int>(record->payload.size())) ||
      snapshot.index() != index) {
    return DamageAt(path, header_record->end, "no whole snapshot");
  }
  return snapshot;
}

absl::StatusOr<std::optional<v1::JournalHeader>> FileJournal::ReadHeader(JournalFileId id) const {
  const std::string path = PathOf(JournalName(id));
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kFileBytesMax));
  const auto record = ReadRecordAt(bytes, 0);
  if (!record) {
    if (bytes.size() > kHeaderBytesMax || FindRecord(bytes, 0)) {
      return DamageAt(path, 0, "no whole header");
    }
    return std::nullopt;
  }
  v1::JournalHeader header;
  if (record->kind != RecordKind::kJournalHeader ||
      !header.ParseFromArray(record->payload.data(), static_cast<int>(record->payload.size()))) {
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

absl::StatusOr<std::vector<ChainFile>> FileJournal::FindChain(const StateFolder& found,
                                                              std::uint64_t from,
                                                              Replay& replay) const {
  std::vector<ChainFile> chain;  // newest first until returned
  for (auto id = found.journals.rbegin(); id != found.journals.rend(); ++id) {
    if (!chain.empty()) {
      const v1::JournalHeader& next = chain.back().header;
      if (next.first_index() <= from + 1 || next.former().empty()) break;
      if (next.former() != JournalName(*id)) continue;
    }
    ASSIGN_OR_RETURN(const std::optional<v1::JournalHeader> header, ReadHeader(*id));
    if (!header && !chain.empty()) {
      return DamageAt(PathOf(JournalName(*id)), 0, "no whole header, though a later file needs it");
    }
    if (!header) {
      replay.notes.push_back(
          absl::StrCat(PathOf(JournalName(*id)), " was cut off while it was being made; ignored"));
      continue;
    }
    std::optional<std::int64_t> sealed;
    if (!chain.empty()) sealed = chain.back().header.former_length();
    chain.push_back({*id, *header, sealed});
  }
  if (!chain.empty() && chain.back().header.first_index() > from + 1) {
    return absl::DataLossError(absl::StrCat(
        "facts ", from + 1, " to ", chain.back().header.first_index() - 1, " are missing: ",
        PathOf(chain.back().header.former().empty() ? "a snapshot" : chain.back().header.former()),
        " is gone. Restore it from a backup; nothing was changed"));
  }
  return std::vector<ChainFile>(chain.rbegin(), chain.rend());
}

absl::Status FileJournal::ReadFacts(const ChainFile& file,
                                    const std::function<absl::Status(const v1::Fact&)>& on_fact,
                                    Replay& replay) {
  const std::string path = PathOf(JournalName(file.id));
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kFileBytesMax));
  std::string_view bytes = content;
  if (file.sealed) {
    if (static_cast<std::int64_t>(bytes.size()) < *file.sealed) {
      return DamageAt(path, static_cast<std::int64_t>(bytes.size()),
                      absl::StrCat("it ends there, and had ", *file.sealed, " bytes when sealed"));
    }
    bytes = bytes.substr(0, static_cast<std::size_t>(*file.sealed));
  }
  ASSIGN_OR_RETURN(const Scan scan, ScanRecords(path, bytes));
  const std::int64_t torn = static_cast<std::int64_t>(bytes.size()) - scan.end;
  if (torn > 0 && file.sealed) return DamageAt(path, scan.end, "no whole record there");
  std::int64_t offset = 0;
  for (const RecordView& record : scan.records) {
    v1::FactBatch batch;
    if (offset > 0 &&
        (record.kind != RecordKind::kFactBatch ||
         !batch.ParseFromArray(record.payload.data(), static_cast<int>(record.payload.size())))) {
      return DamageAt(path, offset, "the record there holds no facts");
    }
    for (const v1::Fact& fact : batch.facts()) {
      if (fact.index() <= replay.last_index) continue;  // The snapshot has it.
      if (fact.index() != replay.last_index + 1) {
        return DamageAt(path, offset,
                        absl::StrCat("fact ", fact.index(), " follows fact ", replay.last_index));
      }
      RETURN_IF_ERROR(Annotate(on_fact(fact), absl::StrCat(path, ", record at offset ", offset)));
      replay.last_index = fact.index();
    }
    offset = record.end;
  }
  if (torn > 0) {
    replay.notes.push_back(absl::StrCat(lock_ < 0 ? "ignored" : "cut", " a torn tail of ", torn,
                                        " bytes from ", path, " at offset ", scan.end));
  }
  last_ = file.id;
  end_ = scan.end;
  return absl::OkStatus();
}

absl::StatusOr<Replay> FileJournal::Read(
    const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
    const std::function<absl::Status(const v1::Fact&)>& on_fact) {
  PACELINE_CHECK(file_ < 0);
  ASSIGN_OR_RETURN(const StateFolder found, ListStateFolder(folder_));
  Replay replay;
  if (!found.journals.empty()) replay.last_epoch = Epoch{found.journals.back().epoch};
  if (!found.snapshots.empty()) {
    ASSIGN_OR_RETURN(const v1::StateSnapshot snapshot, ReadSnapshot(found.snapshots.back()));
    RETURN_IF_ERROR(Annotate(on_snapshot(snapshot), PathOf(SnapshotName(snapshot.index()))));
    replay.last_index = snapshot.index();
  }
  ASSIGN_OR_RETURN(const std::vector<ChainFile> chain, FindChain(found, replay.last_index, replay));
  last_.reset();
  for (const ChainFile& file : chain) RETURN_IF_ERROR(ReadFacts(file, on_fact, replay));
  last_index_ = replay.last_index;
  replayed_ = true;
  return replay;
}

absl::Status FileJournal::CheckFormerUnchanged() const {
  if (!last_) return absl::OkStatus();
  const std::string path = PathOf(JournalName(*last_));
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kFileBytesMax));
  ASSIGN_OR_RETURN(const Scan scan, ScanRecords(path, bytes));
  if (scan.end == end_) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(path, " has grown since it was read: start again"));
}

absl::Status FileJournal::BeginFile(JournalFileId id) {
  const std::string path = PathOf(JournalName(id));
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) return ErrnoStatus(errno, absl::StrCat("making ", path));
  if (file_ >= 0) ::close(file_);
  file_ = file;
  v1::JournalHeader header;
  header.set_version(kJournalVersion);
  header.set_epoch(id.epoch);
  header.set_segment(id.segment);
  header.set_first_index(last_index_ + 1);
  if (last_) {
    header.set_former(JournalName(*last_));
    header.set_former_length(end_);
  }
  broken_ = SyncFolder(folder_);
  // The name is taken. From here on a former coordinator's Append fails, so what it has written
  // by now is all that it ever will: the moment to look whether that is still what was read.
  if (broken_.ok() && id.segment == 1) broken_ = CheckFormerUnchanged();
  last_ = id;
  end_ = 0;
  room_end_ = 0;
  if (broken_.ok()) {
    broken_ = WriteRecord(RecordKind::kJournalHeader, header.SerializeAsString());
  }
  return broken_;
}

absl::Status FileJournal::OpenEpoch(Epoch epoch) {
  PACELINE_CHECK(lock_ >= 0 && replayed_ && file_ < 0);
  const std::optional<JournalFileId> former = last_;
  const std::int64_t former_end = end_;
  RETURN_IF_ERROR(BeginFile({epoch.value(), 1}));
  // The header has sealed the former file already; cutting it only tidies up.
  if (former && ::truncate(PathOf(JournalName(*former)).c_str(), former_end) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cutting ", PathOf(JournalName(*former))));
  }
  return absl::OkStatus();
}

absl::Status FileJournal::WriteRecord(RecordKind kind, const std::string& payload) {
  const std::string path = PathOf(JournalName(*last_));
  if (static_cast<std::int64_t>(payload.size()) > kRecordPayloadMax) {
    return absl::InternalError(absl::StrCat("a record of ", payload.size(), " bytes for ", path,
                                            ": at most ", kRecordPayloadMax, " are allowed"));
  }
  const std::string record = EncodeRecord(kind, payload, end_);
  KeepRoom(static_cast<std::int64_t>(record.size()));
  std::size_t written = 0;
  while (written < record.size()) {
    const ssize_t count = ::pwrite(file_, record.data() + written, record.size() - written,
                                   end_ + static_cast<std::int64_t>(written));
    if (count >= 0) {
      written += static_cast<std::size_t>(count);
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat("writing ", path, " at offset ", end_));
    }
  }
  if (::fdatasync(file_) != 0) return ErrnoStatus(errno, absl::StrCat("fdatasync of ", path));
  end_ += static_cast<std::int64_t>(record.size());
  return absl::OkStatus();
}

// Blocks are taken ahead of time, so that the journal can still say what happens once a full disk
// refuses checkpoints. Where the file system cannot, or is full already, the write itself decides.
void FileJournal::KeepRoom(std::int64_t bytes) {
  if (end_ + bytes + kRoomBytesMin <= room_end_) return;
  const std::int64_t room_end = end_ + bytes + kRoomBytes;
  if (::fallocate(file_, FALLOC_FL_KEEP_SIZE, 0, room_end) == 0) room_end_ = room_end;
}

absl::Status FileJournal::CheckNotReplaced() const {
  const std::string newer = PathOf(JournalName({last_->epoch + 1, 1}));
  if (::access(newer.c_str(), F_OK) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(newer, " exists: a newer coordinator has taken over"));
  }
  // The next epoch's file may be gone again: a later one's snapshot removes it, and then this
  // epoch's as well.
  struct stat own = {};
  if (::fstat(file_, &own) == 0 && own.st_nlink > 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      PathOf(JournalName(*last_)), " was removed: a newer coordinator has taken over"));
}

absl::Status FileJournal::Append(const std::vector<v1::Fact>& facts) {
  PACELINE_CHECK(file_ >= 0);
  RETURN_IF_ERROR(broken_);
  if (facts.empty()) return absl::OkStatus();
  v1::FactBatch batch;
  std::uint64_t index = last_index_;
  for (const v1::Fact& fact : facts) {
    PACELINE_CHECK(fact.index() == ++index);
    *batch.add_facts() = fact;
  }
  broken_ = WriteRecord(RecordKind::kFactBatch, batch.SerializeAsString());
  RETURN_IF_ERROR(broken_);
  broken_ = CheckNotReplaced();
  last_index_ = index;
  return broken_;
}

absl::Status FileJournal::WriteSnapshot(const v1::StateSnapshot& snapshot) {
  PACELINE_CHECK(file_ >= 0 && snapshot.index() == last_index_);
  RETURN_IF_ERROR(broken_);
  v1::SnapshotHeader header;
  header.set_version(kJournalVersion);
  header.set_index(snapshot.index());
  std::string bytes = EncodeRecord(RecordKind::kSnapshotHeader, header.SerializeAsString(), 0);
  const std::string payload = snapshot.SerializeAsString();
  if (static_cast<std::int64_t>(payload.size()) > kRecordPayloadMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the state has ", payload.size(), " bytes; a snapshot holds at most ", kRecordPayloadMax));
  }
  bytes += EncodeRecord(RecordKind::kSnapshot, payload, static_cast<std::int64_t>(bytes.size()));
  RETURN_IF_ERROR(WriteFileAtomically(PathOf(SnapshotName(snapshot.index())), bytes, 0600));
  RETURN_IF_ERROR(BeginFile({last_->epoch, last_->segment + 1}));
  RemoveUnneeded(snapshot.index());
  return absl::OkStatus();
}

// Best effort: what stays is ignored by Read and removed the next time.
void FileJournal::RemoveUnneeded(std::uint64_t snapshot_index) const {
  const absl::StatusOr<StateFolder> found = ListStateFolder(folder_);
  if (!found.ok()) return;
  for (const JournalFileId id : found->journals) {
    if (id < *last_) ::unlink(PathOf(JournalName(id)).c_str());
  }
  for (const std::uint64_t index : found->snapshots) {
    if (index < snapshot_index) ::unlink(PathOf(SnapshotName(index)).c_str());
  }
  for (const std::string& draft : found->drafts) ::unlink(PathOf(draft).c_str());
}

}  // namespace

absl::StatusOr<std::unique_ptr<Journal>> OpenFileJournal(const std::string& folder,
                                                         bool read_only) {
  int lock = -1;
  if (!read_only) {
    RETURN_IF_ERROR(MakeStateFolder(folder));
    ASSIGN_OR_RETURN(lock, LockStateFolder(folder));
  }
  return std::make_unique<FileJournal>(folder, lock);
}

}  // namespace paceline::storage
