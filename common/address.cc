#include "common/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace paceline {

std::string Address::ToString() const {
  const bool ipv6 = host.find(':') != std::string::npos;
  return ipv6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::StatusOr<Address> ParseAddress(const std::string& name, const std::string& text) {
  const absl::Status malformed = absl::InvalidArgumentError(
      absl::StrCat(name, " = \"", text, "\": must be HOST:PORT with a port from 0 (any) to 65535"));
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return malformed;
  Address address;
  address.host = text.substr(0, colon);
  if (address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    return malformed;  // An IPv6 host without brackets is ambiguous.
  }
  const char* const end = text.data() + text.size();
  const auto [parsed_to, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc() || parsed_to != end || address.port < 0 || address.port > 65535 ||
      address.host.empty()) {
    return malformed;
  }
  return address;
}

absl::StatusOr<Address> ParseLoopbackAddress(const std::string& name, const std::string& text) {
  ASSIGN_OR_RETURN(const Address address, ParseAddress(name, text));
  const bool ipv4 = absl::StartsWith(address.host, "127.") &&
                    address.host.find_first_not_of("0123456789.") == std::string::npos;
  if (!ipv4 && address.host != "::1" && address.host != "localhost") {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " = \"", text, "\": only loopback addresses are allowed (127.0.0.1, ",
                     "[::1] or localhost), because connections are not encrypted"));
  }
  return address;
}

absl::Status CheckOwnAddress(const std::string& name, const std::string& ip) {
  const auto refused = [&](const char* why) {
    return absl::InvalidArgumentError(absl::StrCat(name, " = \"", ip, "\": ", why));
  };
  sockaddr_in v4 = {.sin_family = AF_INET};
  sockaddr_in6 v6 = {.sin6_family = AF_INET6};
  const bool is_v4 = ::inet_pton(AF_INET, ip.c_str(), &v4.sin_addr) == 1;
  if (!is_v4 && ::inet_pton(AF_INET6, ip.c_str(), &v6.sin6_addr) != 1) {
    return refused("must be an IPv4 or IPv6 address in digits");
  }
  const bool many =
      is_v4 ? v4.sin_addr.s_addr == INADDR_ANY || IN_MULTICAST(ntohl(v4.sin_addr.s_addr))
            : IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr) || IN6_IS_ADDR_MULTICAST(&v6.sin6_addr) ||
                  IN6_IS_ADDR_LINKLOCAL(&v6.sin6_addr);
  if (many) return refused("give the one address at which the other nodes reach this one");
  const int probe = ::socket(is_v4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const auto* const address =
      is_v4 ? reinterpret_cast<const sockaddr*>(&v4) : reinterpret_cast<const sockaddr*>(&v6);
  const int bound = probe < 0 ? -1 : ::bind(probe, address, is_v4 ? sizeof v4 : sizeof v6);
  const bool here = bound == 0 || errno != EADDRNOTAVAIL;
  if (probe >= 0) ::close(probe);
  return here ? absl::OkStatus() : refused("is no address of this machine; `ip addr` lists them");
}

}  // namespace paceline
