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

std::string SnapshotCopiesFolder(const std::string& root, const std::string& run_id,
                                 const std::string& node) {
  return SnapshotFolder(root, run_id, node) + "/copies";
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
      const std::string name = entry.path().filename();
      if (!name.starts_with('.')) runs.push_back(name);
    }
  }
  std::vector<FoundSnapshot> found;
  const auto look = [&found](const std::string& run, const std::string& folder, bool copy) {
    for (const SnapshotHead& head : ListSnapshots(folder)) {
      if (head.run_id == run) found.push_back({run, head.generation, head.rank, head.step, copy});
    }
  };
  for (const std::string& run : runs) {
    look(run, SnapshotFolder(root, run, node), /*copy=*/false);
    look(run, SnapshotCopiesFolder(root, run, node), /*copy=*/true);
  }
  return found;
}

SnapshotRemoval::SnapshotRemoval(std::string root, std::string node)
    : root_(std::move(root)), node_(std::move(node)), gone_(root_ + "/.gone/" + node_) {
  if (!root_.empty()) thread_ = std::thread([this] { Run(); });
}

SnapshotRemoval::~SnapshotRemoval() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void SnapshotRemoval::Remove(const std::string& run_id) {
  if (root_.empty()) return;
  SetAside(SnapshotFolder(root_, run_id, node_));
  ::rmdir((root_ + "/" + run_id).c_str());  // fails while another node has something there
  Wake();
}

void SnapshotRemoval::Remove(const std::string& run_id, const std::vector<SnapshotFiles>& files) {
  if (root_.empty()) return;
  for (const SnapshotFiles& of_rank : files) {
    const std::string folder = of_rank.copies ? SnapshotCopiesFolder(root_, run_id, node_)
                                              : SnapshotFolder(root_, run_id, node_);
    for (const int which : {0, 1}) SetAside(SnapshotPath(folder, of_rank.rank, which));
  }
  Wake();
}

// What is not there needs no removal. The name is no other process's: agents of several runs on one
// machine may have one name.
void SnapshotRemoval::SetAside(const std::string& path) {
  std::error_code ignored;
  std::filesystem::create_directories(gone_, ignored);
  const std::string name =
      gone_ + "/" + std::to_string(::getpid()) + "-" + std::to_string(++renamed_);
  std::filesystem::rename(path, name, ignored);
}

void SnapshotRemoval::Wake() {
  const std::lock_guard lock(mutex_);
  due_ = true;
  changed_.notify_all();
}

void SnapshotRemoval::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return due_ || ending_; });
    if (!due_) return;
    due_ = false;
    lock.unlock();
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(gone_, ignored)) {
      std::filesystem::remove_all(entry.path(), ignored);
    }
    lock.lock();
  }
}

}  // namespace paceline
