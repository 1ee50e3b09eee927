// The monitoring server over real sockets on loopback.
#include "common/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <chrono>
#include <stdexcept>
#include <string>

#include "common/address.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<HttpServer> StartServer() {
  auto server = HttpServer::Start(
      "127.0.0.1:0",
      {{"/metrics", [] { return HttpResponse{.body = "paceline_up 1\n"}; }},
       {"/json", [] { return HttpResponse{.content_type = "application/json", .body = "[]"}; }},
       {"/throws", []() -> HttpResponse { throw std::runtime_error("no such luck"); }}});
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

httplib::Client ClientOf(const HttpServer& server) {
  httplib::Client client("http://" + server.address());
  client.set_read_timeout(std::chrono::seconds(10));
  return client;
}

TEST(HttpServerTest, GetAnswersWithTheHandlersBodyAndType) {
  const auto server = StartServer();
  httplib::Client client = ClientOf(*server);

  const auto metrics = client.Get("/metrics");
  ASSERT_TRUE(metrics);
  EXPECT_EQ(metrics->status, 200);
  EXPECT_EQ(metrics->body, "paceline_up 1\n");
  const auto json = client.Get("/json?query=is-ignored");
  ASSERT_TRUE(json);
  EXPECT_EQ(json->get_header_value("Content-Type"), "application/json");
}

TEST(HttpServerTest, OtherPathsMethodsAndThrowingHandlersGetTheirStatus) {
  const auto server = StartServer();
  httplib::Client client = ClientOf(*server);

  EXPECT_EQ(client.Get("/metricsX")->status, 404);
  EXPECT_EQ(client.Post("/metrics", "body", "text/plain")->status, 405);
  EXPECT_EQ(client.Delete("/metrics")->status, 405);
  const auto thrown = client.Get("/throws");
  EXPECT_EQ(thrown->status, 500);
  EXPECT_THAT(thrown->body, HasSubstr("no such luck"));
}

TEST(HttpServerTest, AddressInUseIsRefusedByName) {
  const auto server = StartServer();
  const auto second = HttpServer::Start(server->address(), {});
  ASSERT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(server->address()));
}

TEST(HttpServerTest, StopsAtOnceWithAnIdleConnectionOpen) {
  auto server = StartServer();
  httplib::Client client = ClientOf(*server);
  client.set_keep_alive(true);
  ASSERT_TRUE(client.Get("/metrics"));
  const auto start = std::chrono::steady_clock::now();
  server.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4));
}

TEST(AddressTest, HostAndPortAreParsedAndPrintedBack) {
  for (const std::string text : {"127.0.0.1:7070", "[::1]:0", "localhost:65535"}) {
    const auto address = ParseLoopbackAddress("--listen", text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->ToString(), text);
  }
}

TEST(AddressTest, MalformedOrForeignAddressNamesTheFlag) {
  for (const std::string text :
       {"", ":1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:x",
        "::1:80", "[]:80", "0.0.0.0:80", "[::]:80", "127.0.0.1.example.com:80", "example.com:80"}) {
    const auto address = ParseLoopbackAddress("--listen", text);
    ASSERT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(address.status().message()), HasSubstr("--listen"));
  }
}

TEST(AddressTest, ANodesAddressIsOneOfTheMachinesInDigits) {
  EXPECT_TRUE(CheckOwnAddress("--address", "127.0.0.1").ok());
  EXPECT_TRUE(CheckOwnAddress("--address", "127.1.2.3").ok());
  for (const std::string ip : {"", "localhost", "127.0.0.1:80", "127.0.0", "0.0.0.0", "::", "[::1]",
                               "224.0.0.1", "ff02::1", "fe80::1", "192.0.2.1", "2001:db8::1"}) {
    const absl::Status status = CheckOwnAddress("--address", ip);
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << ip;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--address = \"" + ip));
  }
}

}  // namespace
}  // namespace paceline
