#include "coordinator/storage/epoch_fence.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "coordinator/storage/state_folder.h"

namespace paceline::storage {
namespace {

constexpr char kDraft[] = ".draft-e";

absl::Status ReplacedBy(const std::string& path) {
  return absl::FailedPreconditionError(
      absl::StrCat(path, " exists: a newer coordinator has taken over"));
}

bool IsDraftBefore(const std::string& name, std::uint64_t epoch) {
  const std::size_t place = name.rfind(kDraft);
  if (place == std::string::npos) return false;
  const char* const begin = name.data() + place + sizeof(kDraft) - 1;
  const char* const end = name.data() + name.size();
  std::uint64_t of = 0;
  const auto [parsed, error] = std::from_chars(begin, end, of);
  return error == std::errc() && parsed == end && of < epoch;
}

}  // namespace

absl::Status EpochFence::Check() const {
  // By name first: a file system may answer a listing from memory, and a name from the server.
  const std::string next =
      absl::StrCat(folder_, "/", JournalName({epoch_.value() + 1, /*segment=*/1}));
  if (::access(next.c_str(), F_OK) == 0) return ReplacedBy(next);
  // A later epoch's snapshot takes the next one's first file away.
  ASSIGN_OR_RETURN(const StateFolder found, ListStateFolder(folder_));
  if (found.journals.empty() || found.journals.back().epoch <= epoch_.value()) {
    return absl::OkStatus();
  }
  return ReplacedBy(absl::StrCat(folder_, "/", JournalName(found.journals.back())));
}

absl::Status EpochFence::Write(const std::string& path, const std::string& content,
                               int mode) const {
  return WriteFileAtomically(path, absl::StrCat(path, kDraft, epoch_.value()), content, mode,
                             [this] { return Check(); });
}

absl::Status EpochFence::RemoveDrafts(const std::string& folder) const {
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  if (error == std::errc::no_such_file_or_directory) return absl::OkStatus();
  absl::Status result;
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (!IsDraftBefore(name, epoch_.value())) continue;
    const std::string path = absl::StrCat(folder, "/", name);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT && result.ok()) {
      result = ErrnoStatus(errno, absl::StrCat("removing ", path));
    }
  }
  return error ? ErrnoStatus(error.value(), absl::StrCat("listing ", folder)) : result;
}

}  // namespace paceline::storage
