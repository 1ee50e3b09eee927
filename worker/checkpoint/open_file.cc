#include "worker/checkpoint/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/files.h"

namespace paceline {

OpenFile::OpenFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

OpenFile::OpenFile(OpenFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

OpenFile::~OpenFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::StatusOr<OpenFile> OpenFile::ForReading(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "opening " + path);
  return OpenFile(fd, path);
}

absl::StatusOr<OpenFile> OpenFile::New(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "making " + path);
  return OpenFile(fd, path);
}

absl::StatusOr<std::int64_t> OpenFile::Size() const {
  struct stat info = {};
  if (::fstat(fd_, &info) != 0) return ErrnoStatus(errno, "looking at " + path_);
  return static_cast<std::int64_t>(info.st_size);
}

absl::Status OpenFile::ReadAt(std::int64_t offset, void* data, std::int64_t bytes) const {
  auto* to = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t count = ::pread(fd_, to, static_cast<std::size_t>(bytes), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(errno, "reading " + path_);
    if (count == 0) {
      return absl::DataLossError(path_ + ": it ends at byte " + std::to_string(offset) + ", " +
                                 std::to_string(bytes) + " too early");
    }
    to += count;
    offset += count;
    bytes -= count;
  }
  return absl::OkStatus();
}

absl::Status OpenFile::WriteAt(std::int64_t offset, const void* data, std::int64_t bytes) const {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t count = ::pwrite(fd_, from, static_cast<std::size_t>(bytes), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(errno, "writing " + path_);
    from += count;
    offset += count;
    bytes -= count;
  }
  return absl::OkStatus();
}

}  // namespace paceline
