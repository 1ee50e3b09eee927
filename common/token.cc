#include "common/token.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"

namespace paceline {
namespace {

constexpr std::size_t kTokenBytes = 32;

bool IsToken(const std::string& text) {
  return text.size() == 2 * kTokenBytes && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::StatusOr<std::string> RandomToken() {
  std::array<char, kTokenBytes> bytes;
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return ErrnoStatus(errno, "reading random bytes");
  }
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

// Puts a new token at `path` unless there is a file: the link fails where another caller was
// first, and nobody ever sees half a token.
absl::Status MakeToken(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string token, RandomToken());
  const std::string draft = absl::StrCat(path, ".", token.substr(0, 8));
  RETURN_IF_ERROR(WriteFileAtomically(draft, absl::StrCat(token, "\n"), 0600));
  const int linked = ::link(draft.c_str(), path.c_str());
  const int error = errno;
  ::unlink(draft.c_str());
  if (linked != 0 && error != EEXIST) {
    return ErrnoStatus(error, absl::StrCat("making the token file ", path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("token file ", path));
  }
  if ((info.st_mode & 077) != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("token file %s has mode %04o: others may read it. Run: chmod 600 %s", path,
                        info.st_mode & 07777, path));
  }
  ASSIGN_OR_RETURN(std::string token, ReadFile(path, 4096));
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r')) token.pop_back();
  if (!IsToken(token)) {
    return absl::InvalidArgumentError(
        absl::StrCat("token file ", path, " holds no token (64 lower-case hex digits); remove it, ",
                     "and the next start makes a new one"));
  }
  return token;
}

absl::StatusOr<std::string> ReadOrMakeToken(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0 && errno == ENOENT) RETURN_IF_ERROR(MakeToken(path));
  return ReadToken(path);
}

std::string BearerOf(const std::string& token) { return absl::StrCat("Bearer ", token); }

bool EqualSecrets(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  volatile unsigned char difference = 0;  // volatile: the loop must not end early.
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference = difference | static_cast<unsigned char>(a[i] ^ b[i]);
  }
  return difference == 0;
}

}  // namespace paceline
