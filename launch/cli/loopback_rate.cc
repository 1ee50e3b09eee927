#include "launch/cli/loopback_rate.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"

namespace paceline::cli {
namespace {

constexpr std::size_t kSmall = 64;
constexpr std::size_t kLarge = std::size_t{1} << 22;
constexpr int kRounds = 31;
constexpr int kTimeoutSeconds = 5;

class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  int get() const { return descriptor_; }
  bool valid() const { return descriptor_ >= 0; }

 private:
  const int descriptor_;
};

absl::Status Failed(const char* what) {
  return absl::UnavailableError(std::string("measuring loopback: ") + what + ": " +
                                std::strerror(errno));
}

// Everything waits with a limit.
bool Prepare(const Socket& socket) {
  const timeval limit{kTimeoutSeconds, 0};
  const int on = 1;
  return setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0 &&
         setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0 &&
         setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0;
}

bool SendAll(const Socket& socket, const char* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t sent = send(socket.get(), data, bytes, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    data += sent;
    bytes -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool ReceiveAll(const Socket& socket, char* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t received = recv(socket.get(), data, bytes, 0);
    if (received <= 0) return false;
    data += received;
    bytes -= static_cast<std::size_t>(received);
  }
  return true;
}

// Half the median time of a message there and back; negative when a call failed.
double OneWaySeconds(const Socket& socket, std::size_t bytes) {
  using Clock = std::chrono::steady_clock;
  std::vector<char> message(bytes);
  std::vector<double> seconds;
  for (int i = 0; i < kRounds; ++i) {
    const Clock::time_point start = Clock::now();
    if (!SendAll(socket, message.data(), bytes)) return -1;
    if (!ReceiveAll(socket, message.data(), bytes)) return -1;
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() / 2);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return seconds[kRounds / 2];
}

void Echo(const Socket& listener) {
  const Socket peer(accept(listener.get(), nullptr, nullptr));
  if (!peer.valid() || !Prepare(peer)) return;
  std::vector<char> message(kLarge);
  for (const std::size_t bytes : {kSmall, kLarge}) {
    for (int i = 0; i < kRounds; ++i) {
      if (!ReceiveAll(peer, message.data(), bytes)) return;
      if (!SendAll(peer, message.data(), bytes)) return;
    }
  }
}

}  // namespace

absl::StatusOr<planning::LinkRate> MeasureLoopback() {
  const Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Socket own(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.valid() || !own.valid()) return Failed("socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  socklen_t length = sizeof address;
  if (bind(listener.get(), any, length) != 0 || listen(listener.get(), 1) != 0 ||
      getsockname(listener.get(), any, &length) != 0) {
    return Failed("bind");
  }
  // accept() waits as long as a receive may.
  if (!Prepare(own) || !Prepare(listener)) return Failed("setsockopt");
  const std::jthread echo([&listener] { Echo(listener); });
  if (connect(own.get(), any, length) != 0) return Failed("connect");
  const double small = OneWaySeconds(own, kSmall);
  const double large = small < 0 ? -1 : OneWaySeconds(own, kLarge);
  if (large < 0) return Failed("exchange");
  const double transfer = std::max(large - small, 0.01 * large);
  return planning::LinkRate{small, static_cast<double>(kLarge) / transfer};
}

}  // namespace paceline::cli
