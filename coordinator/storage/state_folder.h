// What lies in a coordinator's state folder, by name.
// Invariant: names sort and parse by their numbers; whatever else lies there is ignored.
// Threading: any thread.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace paceline::storage {

// A journal file: segment 1 is the first of its epoch.
struct JournalFileId {
  std::uint64_t epoch = 0;
  std::uint32_t segment = 1;
  auto operator<=>(const JournalFileId&) const = default;
};

struct StateFolder {
  std::vector<JournalFileId> journals;   // ascending
  std::vector<std::uint64_t> leases;     // by epoch, ascending
  std::vector<std::uint64_t> snapshots;  // by index, ascending
  std::vector<std::string> drafts;       // snapshots whose writer died
};

std::string JournalName(JournalFileId id);
std::string LeaseName(std::uint64_t epoch);
std::string SnapshotName(std::uint64_t index);

absl::StatusOr<StateFolder> ListStateFolder(const std::string& folder);

// Makes `folder` (mode 0700) and those above it, where missing.
absl::Status MakeStateFolder(const std::string& folder);

}  // namespace paceline::storage
