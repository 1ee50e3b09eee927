// The folder that holds an agent's socket: mode 0700, which is what keeps other users out, and a
// path short enough for a Unix socket.
// Invariant: the folder exists, is this user's alone, and goes with the object.
// Threading: plain value.
#pragma once

#include <string>

#include "common/status.h"

namespace paceline {

class SocketFolder {
 public:
  // STATE_DIR/NAME, or, where that is too long for a socket or STATE_DIR is empty, a new folder
  // in the system's temporary one.
  static absl::StatusOr<SocketFolder> Make(const std::string& state_dir, const std::string& name);
  ~SocketFolder();
  SocketFolder(SocketFolder&& other) noexcept;
  SocketFolder& operator=(SocketFolder&&) = delete;

  const std::string& socket_path() const { return socket_path_; }

 private:
  explicit SocketFolder(std::string folder);

  std::string folder_;
  std::string socket_path_;
};

}  // namespace paceline
