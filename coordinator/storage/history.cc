#include "coordinator/storage/history.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/storage/journal_file.h"

namespace paceline::storage {
namespace {

std::string HistoryFolder(const std::string& state_folder) {
  return absl::StrCat(state_folder, "/history");
}

std::int64_t BytesOf(const std::string& path) {
  struct stat facts = {};
  return ::stat(path.c_str(), &facts) == 0 ? facts.st_size : 0;
}

bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

absl::StatusOr<StateFolder> ListHistory(const std::string& state_folder) {
  const absl::StatusOr<StateFolder> found = ListStateFolder(HistoryFolder(state_folder));
  if (absl::IsNotFound(found.status())) return StateFolder{};
  return found;
}

// Reads a folder and its history as one row of facts.
class Reader {
 public:
  Reader(std::string state_folder,
         const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
         const std::function<absl::Status(const v1::Fact&)>& on_fact)
      : folder_(std::move(state_folder)), on_snapshot_(on_snapshot), on_fact_(on_fact) {}

  absl::StatusOr<HistoryRead> Read();

 private:
  // Where the file lies now: a coordinator that lives may have moved it since it was listed.
  std::string PathOf(const std::string& name) const {
    const std::string live = absl::StrCat(folder_, "/", name);
    return Exists(live) ? live : absl::StrCat(HistoryFolder(folder_), "/", name);
  }
  absl::Status List();
  // kDataLoss: the chain begins later than files that are still there.
  absl::Status CheckWhole(const ChainFile& oldest) const;
  // The snapshots that follow fact `last_`.
  absl::Status TakeSnapshots();

  const std::string folder_;
  const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot_;
  const std::function<absl::Status(const v1::Fact&)>& on_fact_;
  std::vector<JournalFileId> journals_;
  std::vector<std::uint64_t> snapshots_;
  std::size_t next_snapshot_ = 0;
  std::uint64_t last_ = 0;
};

absl::Status Reader::List() {
  // In this order: what moves in between is seen twice, not missed.
  ASSIGN_OR_RETURN(const StateFolder live, ListStateFolder(folder_));
  ASSIGN_OR_RETURN(const StateFolder past, ListHistory(folder_));
  std::set_union(past.journals.begin(), past.journals.end(), live.journals.begin(),
                 live.journals.end(), std::back_inserter(journals_));
  std::set_union(past.snapshots.begin(), past.snapshots.end(), live.snapshots.begin(),
                 live.snapshots.end(), std::back_inserter(snapshots_));
  return absl::OkStatus();
}

absl::Status Reader::CheckWhole(const ChainFile& oldest) const {
  if (oldest.header.first_index() <= 1) return absl::OkStatus();
  for (const JournalFileId id : journals_) {
    if (!(id < oldest.id)) break;
    const std::string path = PathOf(JournalName(id));
    ASSIGN_OR_RETURN(const std::optional<v1::JournalHeader> header, ReadJournalHeader(path, id));
    if (!header) continue;
    return absl::DataLossError(
        absl::StrCat(oldest.path, " follows ", oldest.header.former(),
                     ", which is gone, while the older ", path, " is there: facts before fact ",
                     oldest.header.first_index(), " are missing. Restore the file from a backup"));
  }
  return absl::OkStatus();
}

absl::Status Reader::TakeSnapshots() {
  while (next_snapshot_ < snapshots_.size() && snapshots_[next_snapshot_] <= last_) {
    const std::uint64_t index = snapshots_[next_snapshot_++];
    if (index < last_) continue;  // it lies before the history
    const std::string path = PathOf(SnapshotName(index));
    ASSIGN_OR_RETURN(const v1::StateSnapshot snapshot, ReadSnapshotFile(path, index));
    RETURN_IF_ERROR(Annotate(on_snapshot_(snapshot), path));
  }
  return absl::OkStatus();
}

absl::StatusOr<HistoryRead> Reader::Read() {
  RETURN_IF_ERROR(List());
  std::vector<std::string> notes;
  ASSIGN_OR_RETURN(
      const std::vector<ChainFile> chain,
      FindChain(
          journals_, [this](JournalFileId id) { return PathOf(JournalName(id)); }, 0, &notes));
  HistoryRead read;
  if (!chain.empty()) {
    RETURN_IF_ERROR(CheckWhole(chain.front()));
    read.first_index = chain.front().header.first_index();
  } else if (!snapshots_.empty()) {
    read.first_index = snapshots_.back() + 1;
  }
  last_ = read.first_index - 1;
  RETURN_IF_ERROR(TakeSnapshots());
  for (const ChainFile& file : chain) {
    std::uint64_t last = last_;
    RETURN_IF_ERROR(ReadJournalFacts(PathOf(JournalName(file.id)), file.sealed, /*passed=*/0, &last,
                                     [this](const v1::Fact& fact) {
                                       RETURN_IF_ERROR(on_fact_(fact));
                                       last_ = fact.index();
                                       return TakeSnapshots();
                                     })
                        .status());
  }
  if (next_snapshot_ < snapshots_.size()) {
    return absl::DataLossError(absl::StrCat(PathOf(SnapshotName(snapshots_.back())),
                                            " is the state after fact ", snapshots_.back(),
                                            ", and the journal ends with fact ", last_,
                                            ": facts are missing. Restore them from a backup"));
  }
  read.last_index = last_;
  return read;
}

}  // namespace

HistoryWriter::HistoryWriter(std::string state_folder, std::int64_t bytes_max)
    : state_folder_(std::move(state_folder)),
      folder_(HistoryFolder(state_folder_)),
      bytes_max_(bytes_max) {}

bool HistoryWriter::MakeFolder() {
  if (bytes_max_ <= 0) return false;
  if (!made_) made_ = ::mkdir(folder_.c_str(), 0700) == 0 || errno == EEXIST;
  return made_;
}

void HistoryWriter::TakeJournal(JournalFileId id) {
  const std::string name = JournalName(id);
  const std::string from = absl::StrCat(state_folder_, "/", name);
  const std::int64_t bytes = BytesOf(from);
  journal_bytes_ += bytes;
  if (bytes_max_ <= 0) {
    ::unlink(from.c_str());
  } else if (MakeFolder() &&
             std::rename(from.c_str(), absl::StrCat(folder_, "/", name).c_str()) == 0) {
    // The blocks that were allocated ahead go back. A failure costs their room alone.
    (void)!::truncate(absl::StrCat(folder_, "/", name).c_str(), bytes);
  }
}

void HistoryWriter::TakeSnapshot(std::uint64_t index) {
  const std::string name = SnapshotName(index);
  const std::string from = absl::StrCat(state_folder_, "/", name);
  // Snapshots of many runs may be larger than all that happened between them.
  const bool keep = BytesOf(from) <= journal_bytes_ && MakeFolder();
  if (!keep || std::rename(from.c_str(), absl::StrCat(folder_, "/", name).c_str()) != 0) {
    ::unlink(from.c_str());
  }
}

void HistoryWriter::Prune() const {
  const absl::StatusOr<StateFolder> found = ListHistory(state_folder_);
  if (!found.ok()) return;
  const auto path_of = [this](const std::string& name) { return absl::StrCat(folder_, "/", name); };
  std::int64_t bytes = 0;
  for (const JournalFileId id : found->journals) bytes += BytesOf(path_of(JournalName(id)));
  for (const std::uint64_t index : found->snapshots) bytes += BytesOf(path_of(SnapshotName(index)));
  auto snapshot = found->snapshots.begin();
  for (auto id = found->journals.begin(); bytes > bytes_max_ && id != found->journals.end();) {
    const std::string oldest = path_of(JournalName(*id));
    bytes -= BytesOf(oldest);
    ::unlink(oldest.c_str());
    ++id;
    // Snapshots of before the oldest file that is left begin nothing any more.
    std::uint64_t first_index = UINT64_MAX;
    if (id != found->journals.end()) {
      const auto header = ReadJournalHeader(path_of(JournalName(*id)), *id);
      first_index = header.ok() && *header ? (*header)->first_index() : 0;
    }
    for (; snapshot != found->snapshots.end() && *snapshot + 1 < first_index; ++snapshot) {
      const std::string path = path_of(SnapshotName(*snapshot));
      bytes -= BytesOf(path);
      ::unlink(path.c_str());
    }
  }
}

absl::StatusOr<HistoryRead> ReadHistory(
    const std::string& state_folder,
    const std::function<absl::Status(const v1::StateSnapshot&)>& on_snapshot,
    const std::function<absl::Status(const v1::Fact&)>& on_fact) {
  if (!Exists(state_folder)) {
    return absl::NotFoundError(absl::StrCat(state_folder, ": there is no such state folder"));
  }
  absl::StatusOr<HistoryRead> read = Reader(state_folder, on_snapshot, on_fact).Read();
  // Everything that was listed was there: its coordinator has taken it away since.
  if (!absl::IsNotFound(read.status())) return read;
  return absl::AbortedError(absl::StrCat("the journal's files changed while they were read: ",
                                         read.status().message(), "; try again"));
}

}  // namespace paceline::storage
