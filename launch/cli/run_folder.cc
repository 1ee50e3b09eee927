#include "launch/cli/run_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "common/clock.h"
#include "common/files.h"
#include "common/status.h"

namespace paceline::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxListedRuns = 10;
constexpr std::int64_t kMaxOwnerBytes = 4096;

bool IsRunFolder(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path + "/run.toml", error);
}

RunFolder FolderAt(const fs::path& path) {
  std::string text = path.lexically_normal().string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return {fs::path(text).filename().string(), text};
}

absl::StatusOr<fs::path> Absolute(const std::string& path) {
  std::error_code error;
  fs::path absolute = fs::absolute(path, error);
  if (error) return absl::InvalidArgumentError(path + ": " + error.message());
  return absolute;
}

std::string ListedRuns(const std::vector<RunFolder>& runs) {
  std::string text;
  for (std::size_t i = 0; i < runs.size() && i < kMaxListedRuns; ++i) {
    text += "\n  " + runs[i].run_id;
  }
  if (runs.size() > kMaxListedRuns) {
    text += "\n  and " + std::to_string(runs.size() - kMaxListedRuns) + " more";
  }
  return text;
}

absl::Status MakeFolder(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) != 0) return ErrnoStatus(errno, "cannot make the folder " + path);
  return absl::OkStatus();
}

}  // namespace

std::string MakeRunId(const std::string& name, std::int64_t wall_ms, std::uint64_t random) {
  const std::time_t seconds = wall_ms / 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char time[32];
  std::strftime(time, sizeof time, "%Y%m%d-%H%M%S", &parts);
  char suffix[8];
  std::snprintf(suffix, sizeof suffix, "%04x", static_cast<unsigned>(random & 0xffff));
  return name + "-" + time + "-" + suffix;
}

absl::StatusOr<RunFolder> CreateRunFolder(const std::string& run_dir, const RunFile& run_file) {
  ASSIGN_OR_RETURN(const fs::path parent, Absolute(run_dir));
  if (IsRunFolder(parent.string())) {
    return absl::InvalidArgumentError("--run-dir " + run_dir +
                                      " is the folder of a run; give the folder that holds the "
                                      "runs' folders, or another");
  }
  std::error_code error;
  fs::create_directories(parent, error);
  if (error) {
    return absl::InvalidArgumentError("--run-dir " + run_dir +
                                      " cannot be made: " + error.message());
  }
  std::random_device entropy;
  RunFolder folder;
  absl::Status made;
  // Two runs of one name in one second differ by the suffix; a clash takes the next.
  for (int attempt = 0; attempt < 16; ++attempt) {
    folder = FolderAt(parent / MakeRunId(run_file.run.name, ReadClock().wall_ms, entropy()));
    made = MakeFolder(folder.path, 0700);
    if (!absl::IsAlreadyExists(made)) break;
  }
  RETURN_IF_ERROR(made);
  RETURN_IF_ERROR(MakeFolder(folder.Logs(), 0700));
  RETURN_IF_ERROR(WriteFileAtomically(folder.RunToml(), ToToml(run_file), 0644));
  return folder;
}

std::vector<RunFolder> ListRunFolders(const std::string& run_dir) {
  absl::StatusOr<fs::path> parent = Absolute(run_dir);
  std::vector<std::pair<fs::file_time_type, RunFolder>> found;
  std::error_code error;
  if (!parent.ok()) return {};
  for (fs::directory_iterator entry(*parent, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code time_error;
    const RunFolder folder = FolderAt(entry->path());
    const fs::file_time_type written = fs::last_write_time(folder.RunToml(), time_error);
    if (!time_error) found.emplace_back(written, folder);
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second.run_id > b.second.run_id;
  });
  std::vector<RunFolder> runs;
  for (auto& [written, folder] : found) runs.push_back(std::move(folder));
  return runs;
}

absl::StatusOr<RunFolder> FindRunFolder(const std::string& run_dir, const std::string& name) {
  if (name.find('/') != std::string::npos && IsRunFolder(name)) {
    ASSIGN_OR_RETURN(const fs::path path, Absolute(name));
    return FolderAt(path);
  }
  const std::vector<RunFolder> runs = ListRunFolders(run_dir);
  if (runs.empty()) {
    return absl::NotFoundError("there are no runs in " + run_dir +
                               "; --run-dir names the folder that holds them");
  }
  if (name == "latest" || (name.empty() && runs.size() == 1)) return runs.front();
  std::vector<RunFolder> fitting;
  for (const RunFolder& run : runs) {
    if (run.run_id == name) return run;
    if (run.run_id.starts_with(name)) fitting.push_back(run);
  }
  if (fitting.size() == 1) return fitting.front();
  if (fitting.empty()) {
    return absl::NotFoundError("there is no run \"" + name + "\" in " + run_dir + "; there are" +
                               ListedRuns(runs));
  }
  return absl::InvalidArgumentError(
      (name.empty() ? "name a run (or \"latest\")" : "\"" + name + "\" fits several runs") +
      "; there are" + ListedRuns(fitting));
}

std::string CheckpointDir(const RunFolder& folder, const RunFile& run_file) {
  return (fs::path(folder.path) / run_file.checkpoint.dir).lexically_normal().string();
}

absl::Status ClaimCheckpointDir(const RunFolder& folder, const RunFile& run_file) {
  const std::string dir = CheckpointDir(folder, run_file);
  const std::string subject = "[checkpoint] dir = \"" + dir + "\"";
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) {
    return absl::InvalidArgumentError(subject + ": it cannot be made: " + error.message());
  }
  // Whole from its first instant on, and of the one that came first.
  const std::string owner = dir + "/" + kCheckpointOwner;
  const std::string draft = owner + "." + folder.run_id;
  RETURN_IF_ERROR(WriteFileAtomically(draft, folder.run_id + "\n", 0644));
  const int failed = ::link(draft.c_str(), owner.c_str()) == 0 ? 0 : errno;
  ::unlink(draft.c_str());
  if (failed == 0) return SyncFolder(dir);
  if (failed != EEXIST) return ErrnoStatus(failed, "making " + owner);
  ASSIGN_OR_RETURN(std::string name, ReadFile(owner, kMaxOwnerBytes));
  while (!name.empty() && name.back() == '\n') name.pop_back();
  if (name == folder.run_id) return absl::OkStatus();
  return absl::InvalidArgumentError(subject + " belongs to run " + name + ", not to run " +
                                    folder.run_id +
                                    "; give a folder of its own, or one relative to the run's "
                                    "folder (where that run is gone for good, remove " +
                                    owner + ")");
}

RunFile WithAbsolutePaths(const RunFolder& folder, RunFile run_file) {
  // The others are absolute since the run file was read.
  run_file.checkpoint.dir = CheckpointDir(folder, run_file);
  return run_file;
}

}  // namespace paceline::cli
