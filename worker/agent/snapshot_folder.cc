#include "worker/agent/snapshot_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/files.h"
#include "worker/checkpoint/snapshot_file.h"

namespace paceline {
namespace {

constexpr mode_t kPrivate = 0700;

}  // namespace

absl::Status PrepareSnapshotRoot(const std::string& root) {
  if (::mkdir(root.c_str(), kPrivate) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, "folder for snapshots " + root);
  }
  struct stat found = {};
  if (::lstat(root.c_str(), &found) != 0) {
    return ErrnoStatus(errno, "folder for snapshots " + root);
  }
  if (!S_ISDIR(found.st_mode) || found.st_uid != ::geteuid() ||
      (found.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return absl::PermissionDeniedError("folder for snapshots " + root +
                                       ": is not a folder of this user alone (mode 0700)");
  }
  return absl::OkStatus();
}

std::string SnapshotFolder(const std::string& root, const std::string& run_id,
                           const std::string& node) {
  return root + "/" + run_id + "/" + node;
}

std::vector<FoundSnapshot> FindSnapshots(const std::string& root, const std::string& run_id,
                                         const std::string& node) {
  std::vector<std::string> runs;
  if (root.empty()) return {};
  if (!run_id.empty()) {
    runs.push_back(run_id);
  } else {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(root, ignored)) {
      runs.push_back(entry.path().filename());
    }
  }
  std::vector<FoundSnapshot> found;
  for (const std::string& run : runs) {
    for (const SnapshotHead& head : ListSnapshots(SnapshotFolder(root, run, node))) {
      if (head.run_id == run) found.push_back({run, head.generation, head.rank, head.step});
    }
  }
  return found;
}

void RemoveSnapshotFolder(const std::string& root, const std::string& run_id,
                          const std::string& node) {
  std::error_code ignored;
  std::filesystem::remove_all(SnapshotFolder(root, run_id, node), ignored);
  ::rmdir((root + "/" + run_id).c_str());  // fails while another node has something there
}

}  // namespace paceline
