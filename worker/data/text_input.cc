#include "worker/data/text_input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace paceline {

absl::StatusOr<TextInput> TextInput::Open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("--input ", path));
  struct stat info {};
  if (::fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(descriptor);
    return absl::InvalidArgumentError(
        absl::StrCat("--input ", path, ": not a regular file; name text files, plain or .gz"));
  }
  gzFile file = ::gzdopen(descriptor, "rb");
  if (file == nullptr) {
    ::close(descriptor);
    return absl::ResourceExhaustedError(absl::StrCat("--input ", path, ": no memory to read it"));
  }
  (void)::gzbuffer(file, 256 << 10);
  return TextInput(path, file);
}

TextInput::TextInput(TextInput&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, nullptr)),
      read_(other.read_) {}

TextInput::~TextInput() {
  if (file_ != nullptr) ::gzclose(file_);
}

absl::StatusOr<std::size_t> TextInput::Read(std::span<char> out) {
  const auto want = static_cast<unsigned>(std::min<std::size_t>(out.size(), INT_MAX));
  const int got = ::gzread(file_, out.data(), want);
  int error = Z_OK;
  const char* text = ::gzerror(file_, &error);
  // A stream cut short is no error to gzread: it gives what it has and leaves Z_BUF_ERROR.
  if (got < 0 || error == Z_BUF_ERROR) {
    return absl::InvalidArgumentError(absl::StrCat("--input ", path_, ": cannot be read: ", text));
  }
  const auto* nul = static_cast<const char*>(std::memchr(out.data(), 0, got));
  if (nul != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("--input ", path_, ": binary, not text: byte ",
                                                   read_ + (nul - out.data()), " is NUL"));
  }
  read_ += got;
  return static_cast<std::size_t>(got);
}

}  // namespace paceline
