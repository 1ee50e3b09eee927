#include "worker/agent/self_test.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace paceline {
namespace {

constexpr std::size_t kFileBytes = 4 << 20;

// Small integers, so that every product and sum is exact in float32.
std::int64_t A(int row, int column) { return (row * 31 + column * 17) % 23 - 11; }
std::int64_t B(int row, int column) { return (row * 13 + column * 29) % 19 - 9; }

// Closes what it holds.
class OpenFile {
 public:
  explicit OpenFile(int fd) : fd_(fd) {}
  ~OpenFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

std::size_t At(int row, int column) {
  return static_cast<std::size_t>(row) * kSelfTestSize + static_cast<std::size_t>(column);
}

char ByteAt(std::size_t i) { return static_cast<char>(i * 2654435761U >> 13); }

absl::Status WriteWhole(int fd, const std::vector<char>& bytes, const std::string& file) {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t wrote = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return ErrnoStatus(errno, "writing " + file);
    done += static_cast<std::size_t>(wrote);
  }
  return ::fsync(fd) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "fsync of " + file);
}

absl::Status ReadAndCompare(int fd, const std::vector<char>& bytes, const std::string& file) {
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);  // from the disk, where the kernel lets us
  std::vector<char> back(bytes.size());
  for (std::size_t done = 0; done < back.size();) {
    const ssize_t got =
        ::pread(fd, back.data() + done, back.size() - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "reading " + file);
    if (got == 0) return absl::InternalError(absl::StrCat(file, " ends after ", done, " bytes"));
    done += static_cast<std::size_t>(got);
  }
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (back[i] == bytes[i]) continue;
    return absl::InternalError(absl::StrCat(file, " reads back differently at byte ", i));
  }
  return absl::OkStatus();
}

absl::Status TestFile(const std::string& file) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(file).parent_path(), error);
  const OpenFile fd(::open(file.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (fd.get() < 0) return ErrnoStatus(errno, "opening " + file);
  std::vector<char> bytes(kFileBytes);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = ByteAt(i);
  absl::Status status = WriteWhole(fd.get(), bytes, file);
  if (status.ok()) status = ReadAndCompare(fd.get(), bytes, file);
  ::unlink(file.c_str());
  return status;
}

}  // namespace

void MultiplySelfTest(std::span<float> c) {
  std::vector<float> a(c.size());
  std::vector<float> b(c.size());
  for (int row = 0; row < kSelfTestSize; ++row) {
    for (int column = 0; column < kSelfTestSize; ++column) {
      a[At(row, column)] = static_cast<float>(A(row, column));
      b[At(row, column)] = static_cast<float>(B(row, column));
      c[At(row, column)] = 0;
    }
  }
  for (int row = 0; row < kSelfTestSize; ++row) {
    for (int k = 0; k < kSelfTestSize; ++k) {
      const float factor = a[At(row, k)];
      for (int column = 0; column < kSelfTestSize; ++column) {
        c[At(row, column)] += factor * b[At(k, column)];
      }
    }
  }
}

absl::Status CheckSelfTest(std::span<const float> c) {
  for (int row = 0; row < kSelfTestSize; ++row) {
    for (int column = 0; column < kSelfTestSize; ++column) {
      std::int64_t sum = 0;
      for (int k = 0; k < kSelfTestSize; ++k) sum += A(row, k) * B(k, column);
      if (c[At(row, column)] == static_cast<float>(sum)) continue;
      return absl::InternalError(absl::StrCat("a matrix product's element (", row, ", ", column,
                                              ") came out as ", c[At(row, column)],
                                              ", and must be ", sum));
    }
  }
  return absl::OkStatus();
}

absl::Status RunSelfTest(const std::string& file) {
  std::vector<float> product(static_cast<std::size_t>(kSelfTestSize) * kSelfTestSize);
  MultiplySelfTest(product);
  RETURN_IF_ERROR(CheckSelfTest(product));
  const absl::Status written = TestFile(file);
  // A full disk is no fault of the node's: training on it goes on as well.
  return absl::IsResourceExhausted(written) ? absl::OkStatus() : written;
}

}  // namespace paceline
