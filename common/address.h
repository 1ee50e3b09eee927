// Host and port of a listening program, as flags and files write them: "127.0.0.1:7070", "[::1]:0".
// Invariant: a parsed address has a host and a port in [0, 65535].
// Threading: plain values.
#pragma once

#include <string>

#include "common/status.h"

namespace paceline {

struct Address {
  std::string host;  // without brackets
  int port = 0;      // 0: the system chooses

  std::string ToString() const;
};

// `name` (a flag or key) stands in the error's text. kInvalidArgument: not HOST:PORT.
absl::StatusOr<Address> ParseAddress(const std::string& name, const std::string& text);

// As ParseAddress, and kInvalidArgument where the host is not the loopback device: until
// certificates guard them, servers listen to their own machine alone.
absl::StatusOr<Address> ParseLoopbackAddress(const std::string& name, const std::string& text);

// What other machines can reach one of: an IPv4 or IPv6 address in digits. kInvalidArgument: a
// host name, or the wildcard.
absl::Status CheckReachable(const std::string& name, const std::string& ip);

}  // namespace paceline
