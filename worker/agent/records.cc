#include "worker/agent/records.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <string_view>
#include <utility>

#include "common/files.h"

namespace paceline {
namespace {

// The shortest text that reads back to the same double. A fraction is always written, so that a
// reader that tells integers from floats gets a float (and keeps the sign of -0.0).
std::string JsonNumber(double value) {
  if (!std::isfinite(value)) return "null";
  std::array<char, 32> buffer;
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  std::string text(buffer.data(), end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

absl::Status CutTornLine(int fd, const std::string& path) {
  struct stat info = {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, path);
  std::array<char, 4096> block;
  off_t whole = 0;  // the length of the file's whole lines
  for (off_t end = info.st_size; end > 0 && whole == 0;) {
    const off_t begin = end > static_cast<off_t>(block.size()) ? end - block.size() : 0;
    const ssize_t got = ::pread(fd, block.data(), static_cast<std::size_t>(end - begin), begin);
    if (got <= 0) return ErrnoStatus(got < 0 ? errno : EIO, path);
    const std::string_view text(block.data(), static_cast<std::size_t>(got));
    if (const std::size_t newline = text.rfind('\n'); newline != std::string_view::npos) {
      whole = begin + static_cast<off_t>(newline) + 1;
    }
    end = begin;
  }
  if (whole == info.st_size || ::ftruncate(fd, whole) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, path);
}

}  // namespace

std::string StepLine(const v1::StepRecord& record, std::int64_t tokens, std::uint64_t generation) {
  return "{\"step\":" + std::to_string(record.step()) + ",\"loss\":" + JsonNumber(record.loss()) +
         ",\"grad_norm\":" + JsonNumber(record.grad_norm()) +
         ",\"learning_rate\":" + JsonNumber(record.learning_rate()) +
         ",\"tokens\":" + std::to_string(tokens) +
         ",\"step_seconds\":" + JsonNumber(record.step_seconds()) +
         ",\"generation\":" + std::to_string(generation) + "}";
}

std::string EvalLine(const v1::EvalRecord& record, std::uint64_t generation) {
  return "{\"step\":" + std::to_string(record.step()) +
         ",\"valid_loss\":" + JsonNumber(record.valid_loss()) +
         ",\"tokens\":" + std::to_string(record.tokens()) +
         ",\"eval_seconds\":" + JsonNumber(record.eval_seconds()) +
         ",\"generation\":" + std::to_string(generation) + "}";
}

absl::StatusOr<std::int64_t> LineFile::LastStep() const {
  constexpr std::string_view kStep = "{\"step\":";
  std::array<char, 4096> block;
  const off_t end = ::lseek(fd_, 0, SEEK_END);
  const off_t begin = std::max<off_t>(end - static_cast<off_t>(block.size()), 0);
  const ssize_t got = ::pread(fd_, block.data(), static_cast<std::size_t>(end - begin), begin);
  if (end < 0 || got < 0) return ErrnoStatus(errno, path_);
  const std::string_view text(block.data(), static_cast<std::size_t>(got));
  const std::size_t last = text.rfind(kStep);
  std::int64_t step = 0;
  if (last != std::string_view::npos) {
    std::from_chars(text.data() + last + kStep.size(), text.data() + text.size(), step);
  }
  return step;
}

LineFile::LineFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

LineFile::~LineFile() {
  if (fd_ >= 0) ::close(fd_);
}

LineFile::LineFile(LineFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

LineFile& LineFile::operator=(LineFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

absl::StatusOr<LineFile> LineFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, path);
  LineFile file(fd, path);
  RETURN_IF_ERROR(CutTornLine(fd, path));
  return file;
}

absl::Status LineFile::Append(const std::string& line) {
  const std::string text = line + "\n";
  const off_t before = ::lseek(fd_, 0, SEEK_END);
  ssize_t written;
  do {
    written = ::write(fd_, text.data(), text.size());
  } while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(text.size())) return absl::OkStatus();
  const int error = written < 0 ? errno : ENOSPC;
  if (written > 0 && ::ftruncate(fd_, before) != 0) return ErrnoStatus(errno, path_);
  return ErrnoStatus(error, path_);
}

}  // namespace paceline
