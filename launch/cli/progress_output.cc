#include "launch/cli/progress_output.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cinttypes>

namespace paceline::cli {
namespace {

// A pipe with room takes PIPE_BUF bytes (4096 on Linux) at once.
constexpr std::size_t kLineMax = 3500;

int Columns(std::FILE* stream) {
  winsize size{};
  return ::ioctl(::fileno(stream), TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

}  // namespace

ProgressOutput::ProgressOutput(std::FILE* stream)
    : stream_(stream), is_terminal_(::isatty(::fileno(stream)) == 1) {}

void ProgressOutput::Show(const ProgressReporter::Lines& lines) {
  for (const std::string& line : lines.events) Event(line);
  if (!is_terminal_ || lines.progress.empty() || !CanWrite()) return;
  Erase();
  progress_ = lines.progress;
  short_progress_ = lines.short_progress;
  Draw();
}

void ProgressOutput::Event(const std::string& line) {
  if (!CanWrite()) {
    ++left_out_;
    return;
  }
  Erase();
  std::fprintf(stream_, "%s\n", line.substr(0, kLineMax).c_str());
  Draw();
}

void ProgressOutput::Finish() {
  if (is_terminal_ && !progress_.empty()) std::fputc('\n', stream_);
  progress_.clear();
  std::fflush(stream_);
}

bool ProgressOutput::CanWrite() {
  const auto room = [this] {
    pollfd output = {.fd = ::fileno(stream_), .events = POLLOUT, .revents = 0};
    return ::poll(&output, 1, 0) == 1;
  };
  if (!room()) return false;
  if (left_out_ == 0) return true;
  Erase();
  std::fprintf(stream_, "(%" PRId64 " lines are left out: nobody read them)\n", left_out_);
  left_out_ = 0;
  std::fflush(stream_);
  return room();
}

void ProgressOutput::Erase() {
  // Back to the line's begin, and erase to its end (ECMA-48 EL).
  if (is_terminal_ && !progress_.empty()) std::fputs("\r\x1b[K", stream_);
}

void ProgressOutput::Draw() {
  if (is_terminal_ && !progress_.empty()) {
    // The last column stays free: some terminals wrap when it is written.
    std::fputs(FitToColumns(progress_, short_progress_, Columns(stream_) - 1).c_str(), stream_);
  }
  std::fflush(stream_);
}

}  // namespace paceline::cli
