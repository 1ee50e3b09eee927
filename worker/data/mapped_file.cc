#include "worker/data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const std::string text = absl::StrCat(path, ": cannot open: ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(text) : absl::InvalidArgumentError(text);
  }
  struct stat info {};
  void* data = MAP_FAILED;
  const bool is_file = ::fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode);
  if (is_file && info.st_size > 0) {
    data = ::mmap(nullptr, info.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
  }
  const int error = errno;
  ::close(descriptor);
  if (!is_file) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  if (info.st_size == 0) return MappedFile();
  if (data == MAP_FAILED) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot map: ", std::strerror(error)));
  }
  return MappedFile(static_cast<std::byte*>(data), info.st_size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void MappedFile::AdviseRandom() const {
  if (data_ != nullptr) (void)::madvise(data_, size_, MADV_RANDOM);
}

void MappedFile::WillNeed(std::int64_t begin, std::int64_t count) const {
  static const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  const std::int64_t end = std::min<std::int64_t>(begin + count, size_);
  begin = std::max<std::int64_t>(begin, 0) / page * page;
  if (begin < end) (void)::madvise(data_ + begin, end - begin, MADV_WILLNEED);
}

}  // namespace paceline
