// A file that takes nothing, as on a disk that hangs, until the test reads it: a full pipe.
// Threading: one thread.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <stdexcept>
#include <string>

namespace paceline {

class StuckFile {
 public:
  explicit StuckFile(const std::string& path) {
    if (::mkfifo(path.c_str(), 0600) == 0) fd_ = ::open(path.c_str(), O_RDWR | O_NONBLOCK);
    if (fd_ < 0) throw std::runtime_error("cannot make the pipe " + path);
    const std::string block(4096, '\n');
    while (::write(fd_, block.data(), block.size()) > 0) {
    }
    if (errno != EAGAIN) throw std::runtime_error("cannot fill the pipe " + path);
  }
  ~StuckFile() { ::close(fd_); }
  StuckFile(const StuckFile&) = delete;
  StuckFile& operator=(const StuckFile&) = delete;

  // What was written so far; from the first call on the file takes more.
  const std::string& Read() {
    std::array<char, 65536> block;
    ssize_t got;
    while ((got = ::read(fd_, block.data(), block.size())) > 0) {
      for (const char c : std::string(block.data(), static_cast<std::size_t>(got))) {
        if (c != '\n' || !text_.empty()) text_.push_back(c);  // without the filling
      }
    }
    return text_;
  }

 private:
  int fd_ = -1;
  std::string text_;
};

}  // namespace paceline
