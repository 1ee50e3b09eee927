#include "worker/huggingface/staged_folder.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace paceline::huggingface {
namespace {

namespace fs = std::filesystem;

// Whether something stands at `target` that is to be replaced.
absl::Status CheckTarget(const std::string& target, const std::string& marker, bool replace) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(target, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  if (error) return ErrnoStatus(error.value(), "--output " + target);
  if (fs::is_directory(status) && fs::is_empty(target, error) && !error) return absl::OkStatus();
  const bool is_ours =
      fs::is_directory(status) && fs::is_regular_file(target + "/" + marker, error);
  if (!is_ours) {
    return absl::AlreadyExistsError(absl::StrCat("--output ", target, ": exists, and is no folder ",
                                                 "with a ", marker, " in it; name another place"));
  }
  if (replace) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("--output ", target, ": exists; --force replaces it"));
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("renaming ", from, " to ", to));
}

}  // namespace

StagedFolder::StagedFolder(std::string target, std::string draft)
    : target_(std::move(target)), draft_(std::move(draft)) {}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  fs::remove_all(draft_, ignored);
}

absl::StatusOr<std::unique_ptr<StagedFolder>> StagedFolder::Begin(const std::string& target,
                                                                  const std::string& marker,
                                                                  bool replace) {
  std::error_code error;
  fs::path place = fs::absolute(target, error).lexically_normal();
  if (!place.has_filename()) place = place.parent_path();  // "out/" is out
  if (target.empty() || error || !place.has_filename()) {
    return absl::InvalidArgumentError("--output \"" + target + "\": name a folder to make");
  }
  RETURN_IF_ERROR(CheckTarget(place.string(), marker, replace));
  const std::string draft = absl::StrCat(place.string(), ".tmp-", ::getpid());
  fs::remove_all(draft, error);  // of an earlier process of the same number
  fs::create_directories(draft, error);
  if (error) return ErrnoStatus(error.value(), "making folder " + draft);
  return std::unique_ptr<StagedFolder>(new StagedFolder(place.string(), draft));
}

absl::Status StagedFolder::Commit() {
  RETURN_IF_ERROR(SyncFolder(draft_));
  std::error_code error;
  const std::string old = absl::StrCat(target_, ".old-", ::getpid());
  const bool replaces = fs::exists(target_, error) && !fs::is_empty(target_, error);
  if (replaces) RETURN_IF_ERROR(Rename(target_, old));
  const absl::Status placed = Rename(draft_, target_);
  if (!placed.ok()) {
    if (replaces) RETURN_IF_ERROR(Annotate(Rename(old, target_), placed.ToString()));
    return placed;
  }
  RETURN_IF_ERROR(SyncFolder(fs::path(target_).parent_path().string()));
  if (replaces) fs::remove_all(old, error);
  return absl::OkStatus();
}

}  // namespace paceline::huggingface
