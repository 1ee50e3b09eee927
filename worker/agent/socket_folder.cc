#include "worker/agent/socket_folder.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/files.h"

namespace paceline {
namespace {

constexpr char kSocketName[] = "/agent.sock";
constexpr std::size_t kSocketPathMax = sizeof(sockaddr_un::sun_path) - 1;

// Makes `folder`, or takes over one that a killed agent of the same name has left, if it is ours.
absl::Status MakePrivate(const std::string& folder) {
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoStatus(errno, folder);
  struct stat info = {};
  if (::lstat(folder.c_str(), &info) != 0) return ErrnoStatus(errno, folder);
  if (!S_ISDIR(info.st_mode) || info.st_uid != ::geteuid()) {
    return absl::InvalidArgumentError(folder +
                                      ": is not a folder of this user; give another "
                                      "--state-dir");
  }
  if (::chmod(folder.c_str(), 0700) != 0) return ErrnoStatus(errno, folder);
  ::unlink((folder + kSocketName).c_str());
  return absl::OkStatus();
}

}  // namespace

SocketFolder::SocketFolder(std::string folder)
    : folder_(std::move(folder)), socket_path_(folder_ + kSocketName) {}

SocketFolder::SocketFolder(SocketFolder&& other) noexcept
    : folder_(std::exchange(other.folder_, {})), socket_path_(std::move(other.socket_path_)) {}

SocketFolder::~SocketFolder() {
  if (folder_.empty()) return;
  ::unlink(socket_path_.c_str());
  ::rmdir(folder_.c_str());
}

absl::StatusOr<SocketFolder> SocketFolder::Make(const std::string& state_dir,
                                                const std::string& name) {
  std::error_code error;
  if (!state_dir.empty()) {
    const std::filesystem::path state = std::filesystem::absolute(state_dir, error);
    std::filesystem::create_directories(state, error);
    if (error) return ErrnoStatus(error.value(), "--state-dir " + state_dir);
    const std::string folder = state / name;
    if (folder.size() + sizeof(kSocketName) - 1 <= kSocketPathMax) {
      RETURN_IF_ERROR(MakePrivate(folder));
      return SocketFolder(folder);
    }
  }
  std::string pattern = std::filesystem::temp_directory_path(error) / "paceline-XXXXXX";
  if (error) return ErrnoStatus(error.value(), "the temporary folder");
  if (::mkdtemp(pattern.data()) == nullptr) return ErrnoStatus(errno, pattern);
  return SocketFolder(pattern);
}

}  // namespace paceline
