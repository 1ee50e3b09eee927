// A small HTTP server for what is read by monitoring: GET of a few fixed paths.
// Invariant: threads, waiting connections and request sizes are bounded, and a slow client is cut
// off after seconds, so that no scraper can hurt the program it watches.
// Threading: Start and the destructor on one thread; handlers run on the server's own threads,
// several at once.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/status.h"

namespace paceline {

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

using HttpHandler = std::function<HttpResponse()>;

class HttpServer {
 public:
  // Listens on `address` ("127.0.0.1:0": any port) until destroyed. Other paths get 404, other
  // methods 405, and a handler that throws 500. kInvalidArgument: not HOST:PORT;
  // kAlreadyExists: the address is in use (or not this machine's), named in the text.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const std::string& address, const std::map<std::string, HttpHandler>& handlers);
  // Refuses new connections, lets answers under way end, and joins.
  ~HttpServer();

  // HOST:PORT with the real port.
  const std::string& address() const;

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
