#include "common/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

// Writes `content` to a new file at `path` and fsyncs it.
absl::Status WriteDurably(const std::string& path, const std::string& content, int mode) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (file < 0) return ErrnoStatus(errno, absl::StrCat("making ", path));
  std::size_t written = 0;
  absl::Status status;
  while (written < content.size() && status.ok()) {
    const ssize_t count = ::write(file, content.data() + written, content.size() - written);
    if (count >= 0) {
      written += static_cast<std::size_t>(count);
    } else if (errno != EINTR) {
      status = ErrnoStatus(errno, absl::StrCat("writing ", path));
    }
  }
  if (status.ok() && ::fsync(file) != 0) {
    status = ErrnoStatus(errno, absl::StrCat("fsync of ", path));
  }
  ::close(file);
  return status;
}

}  // namespace

absl::Status ErrnoStatus(int error, const std::string& context) {
  const std::string text = absl::StrCat(context, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(text);
    case EEXIST:
      return absl::AlreadyExistsError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::UnavailableError(text);
  }
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& content, int mode) {
  return WriteFileAtomically(path, absl::StrCat(path, ".tmp-", ::getpid()), content, mode,
                             [] { return absl::OkStatus(); });
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& draft,
                                 const std::string& content, int mode,
                                 const std::function<absl::Status()>& may_appear) {
  absl::Status status = WriteDurably(draft, content, mode);
  if (status.ok()) status = may_appear();
  if (status.ok() && std::rename(draft.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus(errno, absl::StrCat("renaming ", draft, " to ", path));
  }
  if (!status.ok()) {
    ::unlink(draft.c_str());
    return status;
  }
  const std::size_t slash = path.rfind('/');
  return SyncFolder(slash == std::string::npos ? "." : path.substr(0, slash + 1));
}

absl::StatusOr<std::string> ReadFile(const std::string& path, std::int64_t bytes_max) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return ErrnoStatus(errno, absl::StrCat("opening ", path));
  std::string content;
  char buffer[1 << 16];
  absl::Status status;
  while (true) {
    const ssize_t count = ::read(file, buffer, sizeof(buffer));
    if (count == 0) break;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      status = ErrnoStatus(errno, absl::StrCat("reading ", path));
      break;
    }
    content.append(buffer, static_cast<std::size_t>(count));
    if (static_cast<std::int64_t>(content.size()) > bytes_max) {
      status = absl::ResourceExhaustedError(
          absl::StrCat(path, " is longer than the ", bytes_max, " bytes allowed"));
      break;
    }
  }
  ::close(file);
  if (!status.ok()) return status;
  return content;
}

absl::Status SyncFolder(const std::string& folder) {
  const int file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return ErrnoStatus(errno, absl::StrCat("opening folder ", folder));
  const int result = ::fsync(file);
  const int error = errno;
  ::close(file);
  if (result != 0) return ErrnoStatus(error, absl::StrCat("fsync of folder ", folder));
  return absl::OkStatus();
}

}  // namespace paceline
