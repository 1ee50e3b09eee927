#include "coordinator/storage/state_folder.h"

#include <sys/stat.h>

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

// What lies between "epoch-" and `suffix`.
std::optional<std::string_view> NumbersOf(std::string_view name, std::string_view suffix) {
  constexpr std::string_view kPrefix = "epoch-";
  if (name.size() < kPrefix.size() + suffix.size()) return std::nullopt;
  if (!name.starts_with(kPrefix) || !name.ends_with(suffix)) return std::nullopt;
  return name.substr(kPrefix.size(), name.size() - kPrefix.size() - suffix.size());
}

// "epoch-00000007.lease".
std::optional<std::uint64_t> ParseLeaseName(std::string_view name) {
  const auto numbers = NumbersOf(name, ".lease");
  return numbers ? ParseNumber<std::uint64_t>(*numbers) : std::nullopt;
}

// "epoch-00000007.journal" or "epoch-00000007.0002.journal".
std::optional<JournalFileId> ParseJournalName(std::string_view name) {
  const auto found_numbers = NumbersOf(name, ".journal");
  if (!found_numbers) return std::nullopt;
  const std::string_view numbers = *found_numbers;
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

std::string LeaseName(std::uint64_t epoch) { return absl::StrFormat("epoch-%08d.lease", epoch); }

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
    } else if (const auto epoch = ParseLeaseName(name)) {
      found.leases.push_back(*epoch);
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
  std::sort(found.leases.begin(), found.leases.end());
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

}  // namespace paceline::storage
