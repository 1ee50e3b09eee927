#include "launch/cli/progress_output.h"

#include <sys/ioctl.h>
#include <unistd.h>

namespace paceline::cli {
namespace {

int Columns(std::FILE* stream) {
  winsize size{};
  return ::ioctl(::fileno(stream), TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

}  // namespace

ProgressOutput::ProgressOutput(std::FILE* stream)
    : stream_(stream), is_terminal_(::isatty(::fileno(stream)) == 1) {}

void ProgressOutput::Show(const ProgressReporter::Lines& lines) {
  for (const std::string& line : lines.events) Event(line);
  if (!is_terminal_ || lines.progress.empty()) return;
  Erase();
  progress_ = lines.progress;
  short_progress_ = lines.short_progress;
  Draw();
}

void ProgressOutput::Event(const std::string& line) {
  Erase();
  std::fprintf(stream_, "%s\n", line.c_str());
  Draw();
}

void ProgressOutput::Finish() {
  if (is_terminal_ && !progress_.empty()) std::fputc('\n', stream_);
  progress_.clear();
  std::fflush(stream_);
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
