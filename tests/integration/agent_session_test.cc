// Both ends of a worker's session, over a real Unix socket.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>

#include "common/protocol.h"
#include "tests/support/temp_folder.h"
#include "worker/agent/session_client.h"
#include "worker/agent/worker_server.h"

namespace paceline {
namespace {

using namespace std::chrono_literals;

constexpr auto kPatience = 20s;

class AgentSessionTest : public ::testing::Test {
 protected:
  AgentSessionTest() {
    auto server = WorkerServer::Start({.socket_path = socket_,
                                       .seats = 2,
                                       .on_message =
                                           [this](int, std::uint64_t, v1::WorkerMessage message) {
                                             const std::lock_guard lock(mutex_);
                                             said_.push_back(std::move(message));
                                             changed_.notify_all();
                                             return accept_;
                                           },
                                       .on_closed =
                                           [this](int slot, std::uint64_t) {
                                             const std::lock_guard lock(mutex_);
                                             closed_.push_back(slot);
                                             changed_.notify_all();
                                           }});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::unique_ptr<AgentSession> Connect(int slot) {
    auto session = AgentSession::Connect(socket_, slot, kPatience);
    EXPECT_TRUE(session.ok()) << session.status();
    return *std::move(session);
  }
  bool Await(const std::function<bool()>& holds) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, holds);
  }
  v1::WorkerMessage Finished(std::int64_t step) {
    v1::WorkerMessage message;
    message.mutable_finished()->set_step(step);
    return message;
  }

  TempFolder folder_;
  const std::string socket_ = folder_ / "socket";
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::WorkerMessage> said_;
  std::deque<int> closed_;
  bool accept_ = true;
  std::unique_ptr<WorkerServer> server_;
};

TEST_F(AgentSessionTest, HelloComesFirstAndCommandsInOrder) {
  const auto session = Connect(1);
  ASSERT_TRUE(Await([&] { return said_.size() == 1; }));
  EXPECT_EQ(said_[0].hello().seat(), 1);
  EXPECT_EQ(said_[0].hello().protocol_version(), kWorkerProtocolVersion);
  for (int rank = 0; rank < 100; ++rank) {
    v1::WorkerCommand command;
    command.mutable_start()->set_rank(rank);
    server_->Send(1, command);
  }
  for (int rank = 0; rank < 100; ++rank) {
    const auto command = session->Next(kPatience);
    ASSERT_TRUE(command.ok()) << command.status();
    EXPECT_EQ(command->start().rank(), rank);
  }
  EXPECT_EQ(session->Next(1ms).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(AgentSessionTest, NothingSentIsLostWhenTheWorkerEndsAtOnce) {
  constexpr std::int64_t kMessages = 1000;
  {
    const auto session = Connect(0);
    for (std::int64_t step = 0; step < kMessages; ++step) session->Send(Finished(step));
  }
  ASSERT_TRUE(Await([&] { return !closed_.empty(); }));
  ASSERT_EQ(said_.size(), static_cast<std::size_t>(kMessages + 1));
  EXPECT_EQ(said_.back().finished().step(), kMessages - 1);
}

TEST_F(AgentSessionTest, AgentsEndIsUnavailableForEver) {
  const auto session = Connect(0);
  ASSERT_TRUE(Await([&] { return !said_.empty(); }));
  server_.reset();
  EXPECT_EQ(session->Next(kPatience).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(session->Next(0ms).status().code(), absl::StatusCode::kUnavailable);
  session->Send(Finished(1));
  EXPECT_EQ(session->Flush(kPatience).code(), absl::StatusCode::kUnavailable);
}

TEST_F(AgentSessionTest, NoAgentIsUnavailableWithinTheTimeGiven) {
  const auto session = AgentSession::Connect(folder_ / "nobody", 0, 200ms);
  EXPECT_EQ(session.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(session.status().message()), ::testing::HasSubstr("nobody"));
}

TEST_F(AgentSessionTest, SlotThatTheAgentLacksIsRefused) {
  const auto session = Connect(2);
  EXPECT_EQ(session->Next(kPatience).status().code(), absl::StatusCode::kUnavailable);
  const std::lock_guard lock(mutex_);
  EXPECT_TRUE(said_.empty());
}

TEST_F(AgentSessionTest, RefusedWorkerIsCutOff) {
  accept_ = false;
  const auto session = Connect(0);
  EXPECT_EQ(session->Next(kPatience).status().code(), absl::StatusCode::kUnavailable);
  const std::lock_guard lock(mutex_);
  EXPECT_TRUE(closed_.empty()) << "on_closed is for accepted sessions";
}

}  // namespace
}  // namespace paceline
