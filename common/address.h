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

// An address of this machine that others can be told of, an IPv4 or IPv6 one in digits.
// kInvalidArgument: a host name, another machine's, the wildcard, one of a group or of a link.
absl::Status CheckOwnAddress(const std::string& name, const std::string& ip);

}  // namespace paceline
