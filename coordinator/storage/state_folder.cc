#include "coordinator/storage/state_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"

namespace paceline::storage {
namespace {

template <typename Integer>
std::optional<Integer> ParseNumber(std::string_view text) {
  Integer value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "epoch-00000007.journal" or "epoch-00000007.0002.journal".
std::optional<JournalFileId> ParseJournalName(std::string_view name) {
  constexpr std::string_view kPrefix = "epoch-";
  constexpr std::string_view kSuffix = ".journal";
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  const std::string_view numbers =
      name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  const std::size_t dot = numbers.find('.');
  const auto epoch = ParseNumber<std::uint64_t>(numbers.substr(0, dot));
  if (!epoch) return std::nullopt;
  if (dot == std::string_view::npos) return JournalFileId{*epoch, 1};
  const auto segment = ParseNumber<std::uint32_t>(numbers.substr(dot + 1));
  if (!segment) return std::nullopt;
  return JournalFileId{*epoch, *segment};
}

}  // namespace

std::string JournalName(JournalFileId id) {
  if (id.segment == 1) return absl::StrFormat("epoch-%08d.journal", id.epoch);
  return absl::StrFormat("epoch-%08d.%04d.journal", id.epoch, id.segment);
}

std::string SnapshotName(std::uint64_t index) { return absl::StrFormat("snapshot-%020d", index); }

absl::StatusOr<StateFolder> ListStateFolder(const std::string& folder) {
  constexpr std::string_view kSnapshotPrefix = "snapshot-";
  StateFolder found;
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (const auto id = ParseJournalName(name)) {
      found.journals.push_back(*id);
    } else if (name.starts_with(kSnapshotPrefix)) {
      const auto index =
          ParseNumber<std::uint64_t>(std::string_view(name).substr(kSnapshotPrefix.size()));
      if (index) {
        found.snapshots.push_back(*index);
      } else {
        found.drafts.push_back(name);
      }
    }
  }
  if (error) return ErrnoStatus(error.value(), absl::StrCat("reading the state folder ", folder));
  std::sort(found.journals.begin(), found.journals.end());
  std::sort(found.snapshots.begin(), found.snapshots.end());
  return found;
}

absl::Status MakeStateFolder(const std::string& folder) {
  std::filesystem::path path = std::filesystem::path(folder).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // "state/"
  std::error_code error;
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("making the state folder ", folder));
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("making the state folder ", folder));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> LockStateFolder(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/lock");
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return ErrnoStatus(errno, absl::StrCat("opening ", path));
  if (::flock(file, LOCK_EX | LOCK_NB) != 0 && errno != ENOLCK && errno != EOPNOTSUPP) {
    const int error = errno;
    ::close(file);
    if (error != EWOULDBLOCK) return ErrnoStatus(error, absl::StrCat("locking ", path));
    const absl::StatusOr<std::string> holder = ReadFile(path, 64);
    return absl::AlreadyExistsError(
        absl::StrCat("the state folder ", folder, " belongs to another coordinator that runs",
                     holder.ok() && !holder->empty() ? absl::StrCat(" (pid ", *holder, ")") : "",
                     "; stop it, or choose another folder"));
  }
  const std::string pid = absl::StrCat(::getpid());
  if (::ftruncate(file, 0) != 0 ||
      ::pwrite(file, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("writing ", path));
    ::close(file);
    return status;
  }
  return file;
}

}  // namespace paceline::storage
