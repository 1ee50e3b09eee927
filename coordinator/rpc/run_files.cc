#include "coordinator/rpc/run_files.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

// Tokens a second of the ranks' processes; 0: they have not stepped.
double TokensPerSecond(const v1::RunStatus& status) {
  double tokens = 0;
  double seconds = 0;
  for (const v1::RankProgress& rank : status.ranks()) {
    tokens += static_cast<double>(rank.tokens());
    seconds = std::max(seconds, rank.step_seconds());
  }
  if (seconds > 0 && tokens > 0) return tokens / seconds;
  const v1::StepRecord& step = status.step();  // Ranks that have gone leave the last step's.
  return step.step_seconds() > 0 ? static_cast<double>(step.tokens()) / step.step_seconds() : 0;
}

}  // namespace

absl::Status WritePendingManifest(const std::string& folder, const std::string& json) {
  return WriteFileAtomically(absl::StrCat(folder, "/", kPendingManifest), json, 0644);
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

absl::Status DeleteCheckpoint(const std::string& folder) {
  const std::filesystem::path path(folder);
  if (!path.is_absolute() || !absl::StartsWith(path.filename().string(), "step-")) {
    return absl::InvalidArgumentError(
        absl::StrCat("not deleting ", folder, ": its name is not that of a checkpoint"));
  }
  RETURN_IF_ERROR(RemoveFile(absl::StrCat(folder, "/", kManifest)));
  RETURN_IF_ERROR(RemoveFile(absl::StrCat(folder, "/", kPendingManifest)));
  if (const absl::Status synced = SyncFolder(folder); !synced.ok()) {
    return absl::IsNotFound(synced) ? absl::OkStatus() : synced;
  }
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("removing ", folder));
  return absl::OkStatus();
}

std::string RunStateName(v1::RunState state) {
  switch (state) {
    case v1::RUN_STATE_WAITING:
      return "waiting";
    case v1::RUN_STATE_STARTING:
      return "starting";
    case v1::RUN_STATE_RUNNING:
      return "running";
    case v1::RUN_STATE_STOPPING:
      return "stopping";
    case v1::RUN_STATE_COMPLETED:
      return "completed";
    case v1::RUN_STATE_STOPPED:
      return "stopped";
    case v1::RUN_STATE_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

std::string SummaryJson(const v1::RunStatus& status) {
  nlohmann::ordered_json summary;
  summary["run_id"] = status.run_id();
  summary["state"] = RunStateName(status.state());
  summary["reason"] = status.reason();
  summary["steps"] = status.step().step();
  summary["tokens"] = status.tokens();
  const nlohmann::ordered_json null;
  summary["loss"] = status.has_step() ? nlohmann::ordered_json(status.step().loss()) : null;
  summary["valid_loss"] =
      status.has_eval() ? nlohmann::ordered_json(status.eval().valid_loss()) : null;
  const double rate = TokensPerSecond(status);
  summary["tokens_per_second"] = rate > 0 ? nlohmann::ordered_json(rate) : null;
  summary["generations"] = status.generation();
  summary["recoveries"] = status.recoveries();
  summary["lost_steps"] = status.lost_steps();
  summary["lost_tokens"] = status.lost_tokens();
  summary["cost"] = status.cost();
  summary["currency"] = status.currency();
  summary["cost_per_million_tokens"] =
      status.tokens() > 0
          ? nlohmann::ordered_json(status.cost() / (static_cast<double>(status.tokens()) / 1e6))
          : null;
  summary["checkpoint"] =
      status.checkpoint().empty() ? null : nlohmann::ordered_json(status.checkpoint());
  // Texts come from outside: bytes that are no UTF-8 are replaced, not thrown over.
  return summary.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string ToJson(const CoordinatorInfo& info) {
  nlohmann::ordered_json json;
  json["address"] = info.address;
  json["metrics_address"] = info.metrics_address;
  json["epoch"] = info.epoch;
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
  return WriteFileAtomically(path, json, 0644);
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
