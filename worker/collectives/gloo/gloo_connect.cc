#include "worker/collectives/gloo/gloo_connect.h"

#include <arpa/inet.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/address.h>
#include <gloo/transport/tcp/device.h>

#include <condition_variable>
#include <csignal>
#include <cstring>
#include <exception>
#include <mutex>
#include <sstream>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

namespace paceline {
namespace {

using gloo::transport::Context;
using gloo::transport::tcp::Address;

// A socket address out of text. False: not a numeric IPv4 or IPv6 address.
bool ParseAddress(const std::string& ip, std::uint16_t port, sockaddr_storage* out) {
  *out = {};
  auto* v4 = reinterpret_cast<sockaddr_in*>(out);
  if (inet_pton(AF_INET, ip.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    return true;
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(out);
  if (inet_pton(AF_INET6, ip.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    return true;
  }
  return false;
}

std::uint16_t PortOf(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// Gloo listens on one port for each peer: "127.0.0.1 0 40123 40124", by rank, the own place 0.
std::string OwnAddress(const CommunicatorOptions& options, Context& context) {
  std::string text = options.interface_address;
  for (int peer = 0; peer < options.size; ++peer) {
    int port = 0;
    if (peer != options.rank) {
      const auto& address = dynamic_cast<const Address&>(context.getPair(peer)->address());
      port = PortOf(address.getSockaddr());
    }
    text += " " + std::to_string(port);
  }
  return text;
}

absl::StatusOr<std::vector<char>> AddressFor(int rank, int peer, const std::string& published) {
  std::istringstream in(published);
  std::string ip;
  in >> ip;
  int port = -1;
  for (int i = 0; i <= rank && in; ++i) in >> port;
  sockaddr_storage address;
  if (!in || port < 1 || port > 65535 ||
      !ParseAddress(ip, static_cast<std::uint16_t>(port), &address)) {
    return absl::UnavailableError("rank " + std::to_string(peer) + " published \"" +
                                  published.substr(0, 200) +
                                  "\", which holds no address for rank " + std::to_string(rank));
  }
  return Address(address).bytes();
}

// Closes all connections at the deadline, which wakes whoever waits for one of them. Gloo's own
// limit holds for each connection, not for all together.
class ConnectLimit {
 public:
  ConnectLimit(Context& context, std::chrono::milliseconds limit)
      : thread_([this, &context, limit](std::stop_token stop) {
          std::unique_lock lock(mutex_);
          if (stopped_.wait_for(lock, stop, limit, [] { return false; }) || stop.stop_requested())
            return;
          expired_ = true;
          for (int peer = 0; peer < context.size; ++peer) {
            if (peer != context.rank) context.getPair(peer)->close();
          }
        }) {}

  // Whether the limit had passed. Ends it.
  bool Stop() {
    thread_.request_stop();
    thread_.join();
    return expired_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any stopped_;
  bool expired_ = false;  // written by the thread, read after its end
  std::jthread thread_;
};

absl::Status ConnectAll(const CommunicatorOptions& options, Context& context,
                        const std::vector<std::string>& published) {
  std::vector<std::vector<char>> addresses(options.size);
  for (int peer = 0; peer < options.size; ++peer) {
    if (peer == options.rank) continue;
    ASSIGN_OR_RETURN(addresses[peer], AddressFor(options.rank, peer, published[peer]));
  }
  ConnectLimit limit(context, options.connect_timeout);
  int peer = 0;
  std::string why;
  try {
    for (; peer < options.size; ++peer) {
      if (peer != options.rank) context.getPair(peer)->connect(addresses[peer]);
    }
  } catch (const std::exception& error) {
    why = error.what();
  }
  if (limit.Stop()) {
    return absl::UnavailableError("not all ranks connected to rank " +
                                  options.NameOf(options.rank) + " within " +
                                  std::to_string(options.connect_timeout.count()) + " ms");
  }
  if (why.empty()) return absl::OkStatus();
  return absl::UnavailableError("rank " + options.NameOf(options.rank) +
                                " could not connect to rank " + options.NameOf(peer) + ": " + why);
}

// Gloo writes to sockets without MSG_NOSIGNAL: a dead peer would end this process. A handler
// that the program has installed stays.
void IgnoreSigpipe() {
  struct sigaction current = {};
  if (sigaction(SIGPIPE, nullptr, &current) == 0 && current.sa_handler == SIG_DFL) {
    std::signal(SIGPIPE, SIG_IGN);
  }
}

absl::Status CheckOptions(const CommunicatorOptions& options) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError("rank is " + std::to_string(options.rank) + " and size " +
                                      std::to_string(options.size) + ": want 0 <= rank < size");
  }
  sockaddr_storage ignored;
  // Checked here because Gloo looks up a bad one as a host name, and crashes if that fails.
  if (!ParseAddress(options.interface_address, 0, &ignored)) {
    return absl::InvalidArgumentError("interface_address is \"" + options.interface_address +
                                      "\": want a numeric IPv4 or IPv6 address of this machine");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<Context>> ConnectGlooMesh(const CommunicatorOptions& options,
                                                         const ExchangeAddresses& exchange) {
  RETURN_IF_ERROR(CheckOptions(options));
  IgnoreSigpipe();
  std::shared_ptr<Context> context;
  std::string own_address;
  try {
    auto device = gloo::transport::tcp::CreateDevice(
        gloo::transport::tcp::attr(options.interface_address.c_str()));
    context = device->createContext(options.rank, options.size);
    context->setTimeout(options.connect_timeout);
    for (int peer = 0; peer < options.size; ++peer) {
      if (peer != options.rank) context->createPair(peer);
    }
    own_address = OwnAddress(options, *context);
  } catch (const std::exception& error) {
    return absl::UnavailableError("cannot listen on interface_address \"" +
                                  options.interface_address + "\": " + error.what());
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> published, exchange(own_address));
  if (std::ssize(published) != options.size) {
    return absl::UnavailableError("the address exchange gave " + std::to_string(published.size()) +
                                  " addresses for " + std::to_string(options.size) + " ranks");
  }
  RETURN_IF_ERROR(ConnectAll(options, *context, published));
  return context;
}

}  // namespace paceline
