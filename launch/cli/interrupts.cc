#include "launch/cli/interrupts.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <ctime>

#include "common/check.h"

namespace paceline::cli {
namespace {

// A signal handler has no other way to its object.
std::atomic<int> signals_seen{0};
std::atomic<int> signal_event_fd{-1};

// One Ctrl-C may come twice: from the terminal and from a wrapper that hands it on.
constexpr std::int64_t kSameInterruptMs = 300;
std::atomic<std::int64_t> last_signal_ms{-kSameInterruptMs};

void OnSignal(int) {
  const int saved_errno = errno;
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const std::int64_t now_ms = std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
  if (now_ms - last_signal_ms.exchange(now_ms) >= kSameInterruptMs) signals_seen.fetch_add(1);
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(signal_event_fd.load(), &one, sizeof one);
  errno = saved_errno;
}

void SetHandlers(void (*handler)(int), void (*write_handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &action, nullptr);
  action.sa_handler = write_handler;
  for (const int signal : {SIGPIPE, SIGXFSZ}) ::sigaction(signal, &action, nullptr);
}

}  // namespace

Interrupts::Interrupts() {
  PACELINE_CHECK(signal_event_fd.load() < 0);
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  PACELINE_CHECK(fd >= 0);
  signals_seen = 0;
  signal_event_fd = fd;
  SetHandlers(OnSignal, SIG_IGN);
}

Interrupts::~Interrupts() {
  SetHandlers(SIG_DFL, SIG_DFL);
  ::close(signal_event_fd.exchange(-1));
}

int Interrupts::count() const { return signals_seen.load(); }

int Interrupts::event_fd() const { return signal_event_fd.load(); }

void Interrupts::Drain() {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(signal_event_fd.load(), &count, sizeof count);
}

}  // namespace paceline::cli
