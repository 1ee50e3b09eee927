#include "coordinator/rpc/run_files.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/checkpoint_name.h"
#include "common/files.h"

namespace paceline {
namespace {

constexpr char kManifest[] = "manifest.json";
constexpr char kPendingManifest[] = "manifest.json.pending";
constexpr std::int64_t kCoordinatorFileBytesMax = 1 << 16;

absl::Status RemoveFile(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT || errno == ENOTDIR) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("removing ", path));
}

// Before it is removed or renamed.
absl::Status CheckName(const std::string& folder) {
  const std::filesystem::path path(folder);
  if (path.is_absolute() && ParseCheckpointFolderName(path.filename().string())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("not touching ", folder, ": its name is not that of a checkpoint"));
}

// Also where that cannot be told: what is asked is whether the folder may go.
bool HoldsManifest(const std::string& folder) {
  return ::access(absl::StrCat(folder, "/", kManifest).c_str(), F_OK) == 0 ||
         (errno != ENOENT && errno != ENOTDIR);
}

absl::Status CheckPartFile(const std::string& path, std::int64_t bytes) {
  struct stat found = {};
  if (::stat(path.c_str(), &found) != 0) {
    const int error = errno;
    if (error != ENOENT && error != ENOTDIR) return ErrnoStatus(error, absl::StrCat("stat ", path));
    return absl::DataLossError(absl::StrCat(path, " is not there, though its rank reported it"));
  }
  if (S_ISREG(found.st_mode) && found.st_size == bytes) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, " has ", found.st_size,
                                          " bytes, its rank reported ", bytes,
                                          "; do all nodes see one checkpoint folder?"));
}

}  // namespace

absl::Status WritePendingManifest(const storage::EpochFence& fence, const std::string& folder,
                                  const Manifest& manifest) {
  for (const ManifestPart& part : manifest.parts) {
    RETURN_IF_ERROR(CheckPartFile(absl::StrCat(folder, "/", part.file), part.bytes));
  }
  return fence.Write(absl::StrCat(folder, "/", kPendingManifest), ToJson(manifest), 0644);
}

absl::Status PublishManifest(const std::string& folder) {
  const std::string pending = absl::StrCat(folder, "/", kPendingManifest);
  const std::string manifest = absl::StrCat(folder, "/", kManifest);
  if (std::rename(pending.c_str(), manifest.c_str()) != 0) {
    const int error = errno;
    if (error != ENOENT || ::access(manifest.c_str(), F_OK) != 0) {
      return ErrnoStatus(error, absl::StrCat("renaming ", pending, " to ", kManifest));
    }
  }
  return SyncFolder(folder);
}

absl::Status DeleteCheckpoint(const std::string& folder, bool committed) {
  RETURN_IF_ERROR(CheckName(folder));
  if (!committed && HoldsManifest(folder)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "not deleting ", folder, ": it was to be discarded uncommitted, but holds a ", kManifest));
  }
  RETURN_IF_ERROR(RemoveFile(absl::StrCat(folder, "/", kManifest)));
  RETURN_IF_ERROR(RemoveFile(absl::StrCat(folder, "/", kPendingManifest)));
  if (const absl::Status synced = SyncFolder(folder); !synced.ok()) {
    return absl::IsNotFound(synced) ? absl::OkStatus() : synced;
  }
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("removing ", folder));
  return absl::OkStatus();
}

absl::Status SetCheckpointAside(const std::string& folder) {
  RETURN_IF_ERROR(CheckName(folder));
  const std::string aside = absl::StrCat(folder, kSetAside);
  if (std::rename(folder.c_str(), aside.c_str()) == 0) {
    return SyncFolder(std::filesystem::path(folder).parent_path().string());
  }
  const int error = errno;
  if (error == ENOENT) return absl::OkStatus();
  return ErrnoStatus(error, absl::StrCat("renaming ", folder, " to ", aside));
}

absl::Status SweepCheckpoints(const storage::EpochFence& fence, const std::string& dir,
                              std::uint64_t last_generation,
                              const std::vector<std::string>& known) {
  std::error_code error;
  std::filesystem::directory_iterator entries(dir, error);
  if (error == std::errc::no_such_file_or_directory) return absl::OkStatus();
  std::vector<std::string> left_over;
  absl::Status result;
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string folder = absl::StrCat(dir, "/", entries->path().filename().string());
    const auto name = ParseCheckpointFolderName(entries->path().filename().string());
    if (!name) continue;
    const absl::Status drafts = fence.RemoveDrafts(folder);
    if (result.ok()) result = drafts;
    if (name->generation > last_generation) continue;
    if (std::find(known.begin(), known.end(), folder) != known.end()) continue;
    if (HoldsManifest(folder)) {
      spdlog::warn("{} is a whole checkpoint that the journal does not know; it is left alone",
                   folder);
    } else {
      left_over.push_back(folder);
    }
  }
  if (error && result.ok()) result = ErrnoStatus(error.value(), absl::StrCat("listing ", dir));
  for (const std::string& folder : left_over) {
    spdlog::info("removing {}, which was never committed", folder);
    const absl::Status removed = DeleteCheckpoint(folder, /*committed=*/false);
    if (result.ok()) result = removed;
  }
  return result;
}

std::string ToJson(const CoordinatorInfo& info) {
  nlohmann::ordered_json json;
  json["address"] = info.address;
  json["metrics_address"] = info.metrics_address;
  json["epoch"] = info.epoch;
  json["host"] = info.host;
  json["pid"] = info.pid;
  json["token_file"] = info.token_file;
  json["started_ms"] = info.started_ms;
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void CoordinatorFiles::SetInfo(const CoordinatorInfo& info) {
  const std::lock_guard lock(mutex_);
  json_ = ToJson(info);
}

absl::Status CoordinatorFiles::WriteTo(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/coordinator.json");
  std::string json;
  {
    const std::lock_guard lock(mutex_);
    json = json_;
    paths_.insert(path);
  }
  return fence_.Write(path, json, 0644);
}

absl::Status CoordinatorFiles::Tend() {
  std::set<std::string> paths;
  std::string json;
  {
    const std::lock_guard lock(mutex_);
    paths = paths_;
    json = json_;
  }
  absl::Status result;
  for (const std::string& path : paths) {
    const absl::StatusOr<std::string> found = ReadFile(path, kCoordinatorFileBytesMax);
    if (!found.ok() && !absl::IsNotFound(found.status())) continue;
    if (found.ok() && *found == json) continue;
    // The run's folder may have been taken away.
    if (::access(path.substr(0, path.rfind('/')).c_str(), F_OK) != 0) continue;
    const absl::Status status = fence_.Write(path, json, 0644);
    if (result.ok()) result = status;
  }
  return result;
}

void CoordinatorFiles::RemoveAll() {
  const std::lock_guard lock(mutex_);
  for (const std::string& path : paths_) {
    const absl::StatusOr<std::string> found = ReadFile(path, kCoordinatorFileBytesMax);
    if (found.ok() && *found == json_) ::unlink(path.c_str());
  }
  paths_.clear();
}

}  // namespace paceline
