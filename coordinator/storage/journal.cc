#include "coordinator/storage/journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/files.h"
#include "coordinator/storage/epoch_fence.h"
#include "coordinator/storage/history.h"
#include "coordinator/storage/journal_file.h"
#include "coordinator/storage/record.h"
#include "coordinator/storage/state_folder.h"

namespace paceline::storage {
namespace {

// Blocks allocated ahead of the journal's end, and what of them must be left before more are taken.
constexpr std::int64_t kRoomBytes = std::int64_t{1} << 20;
constexpr std::int64_t kRoomBytesMin = std::int64_t{256} << 10;

class FileJournal : public Journal {
 public:
  FileJournal(std::string folder, bool read_only, std::int64_t history_bytes_max)
      : folder_(std::move(folder)), read_only_(read_only), history_bytes_max_(history_bytes_max) {}
  ~FileJournal() override {
    if (file_ >= 0) ::close(file_);
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

  // Oldest first: the files that hold what comes after the replay's last fact.
  absl::StatusOr<std::vector<ChainFile>> ChainAfter(const StateFolder& found, Replay& replay) const;
  absl::Status BeginFile(JournalFileId id);
  absl::Status WriteRecord(RecordKind kind, const std::string& payload);
  void KeepRoom(std::int64_t bytes);
  absl::Status CheckFormerUnchanged() const;
  // kFailedPrecondition: a newer epoch exists.
  absl::Status CheckNotReplaced() const;
  void RetireUnneeded(std::uint64_t snapshot_index) const;

  const std::string folder_;
  const bool read_only_;
  const std::int64_t history_bytes_max_;
  // The last file of the chain, and the bytes of it that count.
  std::optional<JournalFileId> last_;
  std::int64_t end_ = 0;
  std::int64_t room_end_ = 0;  // blocks are allocated up to here
  std::uint64_t last_index_ = 0;
  bool replayed_ = false;
  int file_ = -1;        // open for appending: `last_`
  absl::Status broken_;  // the first error; nothing is accepted after
};

absl::StatusOr<std::vector<ChainFile>> FileJournal::ChainAfter(const StateFolder& found,
                                                               Replay& replay) const {
  const std::uint64_t from = replay.last_index;
  ASSIGN_OR_RETURN(std::vector<ChainFile> chain,
                   FindChain(
                       found.journals, [this](JournalFileId id) { return PathOf(JournalName(id)); },
                       from, &replay.notes));
  if (!chain.empty() && chain.front().header.first_index() > from + 1) {
    const std::string& former = chain.front().header.former();
    return absl::DataLossError(
        absl::StrCat("facts ", from + 1, " to ", chain.front().header.first_index() - 1,
                     " are missing: ", PathOf(former.empty() ? "a snapshot" : former),
                     " is gone. Restore it from a backup; nothing was changed"));
  }
  return chain;
}

absl::StatusOr<Replay> FileJournal::Read(
    const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
    const std::function<absl::Status(const v1::Fact&)>& on_fact) {
  PACELINE_CHECK(file_ < 0);
  ASSIGN_OR_RETURN(const StateFolder found, ListStateFolder(folder_));
  Replay replay;
  if (!found.journals.empty()) replay.last_epoch = Epoch{found.journals.back().epoch};
  if (!found.snapshots.empty()) {
    const std::uint64_t index = found.snapshots.back();
    ASSIGN_OR_RETURN(const v1::StateSnapshot snapshot,
                     ReadSnapshotFile(PathOf(SnapshotName(index)), index));
    RETURN_IF_ERROR(Annotate(on_snapshot(snapshot), PathOf(SnapshotName(snapshot.index()))));
    replay.last_index = snapshot.index();
  }
  const std::uint64_t snapshot_index = replay.last_index;
  ASSIGN_OR_RETURN(const std::vector<ChainFile> chain, ChainAfter(found, replay));
  last_.reset();
  for (const ChainFile& file : chain) {
    ASSIGN_OR_RETURN(const FactsRead read, ReadJournalFacts(file.path, file.sealed, snapshot_index,
                                                            &replay.last_index, on_fact));
    if (read.torn > 0) {
      replay.notes.push_back(absl::StrCat(read_only_ ? "ignored" : "cut", " a torn tail of ",
                                          read.torn, " bytes from ", file.path, " at offset ",
                                          read.end));
    }
    last_ = file.id;
    end_ = read.end;
  }
  last_index_ = replay.last_index;
  replayed_ = true;
  return replay;
}

absl::Status FileJournal::CheckFormerUnchanged() const {
  if (!last_) return absl::OkStatus();
  const std::string path = PathOf(JournalName(*last_));
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kJournalFileBytesMax));
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
  PACELINE_CHECK(!read_only_ && replayed_ && file_ < 0);
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
  // The next epoch's file may be gone again: a later one's snapshot takes it away, and then this
  // epoch's as well.
  const std::string path = PathOf(JournalName(*last_));
  struct stat own = {};
  struct stat there = {};
  if (::fstat(file_, &own) == 0 && ::stat(path.c_str(), &there) == 0 &&
      own.st_ino == there.st_ino && own.st_dev == there.st_dev) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(path, " was taken away: a newer coordinator has taken over"));
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
  // A newer coordinator's snapshot may have taken away both its own first file and what came before
  // the one that has just been begun.
  broken_ = EpochFence(folder_, Epoch{last_->epoch}).Check();
  RETURN_IF_ERROR(broken_);
  RetireUnneeded(snapshot.index());
  return absl::OkStatus();
}

// Best effort: what stays is ignored by Read and goes the next time.
void FileJournal::RetireUnneeded(std::uint64_t snapshot_index) const {
  const absl::StatusOr<StateFolder> found = ListStateFolder(folder_);
  if (!found.ok()) return;
  HistoryWriter history(folder_, history_bytes_max_);
  for (const JournalFileId id : found->journals) {
    if (id < *last_) history.TakeJournal(id);
  }
  for (const std::uint64_t index : found->snapshots) {
    if (index < snapshot_index) history.TakeSnapshot(index);
  }
  history.Prune();
  for (const std::string& draft : found->drafts) ::unlink(PathOf(draft).c_str());
}

}  // namespace

absl::StatusOr<std::unique_ptr<Journal>> OpenFileJournal(const std::string& folder, bool read_only,
                                                         std::int64_t history_bytes_max) {
  if (!read_only) RETURN_IF_ERROR(MakeStateFolder(folder));
  return std::make_unique<FileJournal>(folder, read_only, history_bytes_max);
}

}  // namespace paceline::storage
