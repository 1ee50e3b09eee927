// Snapshots that travel between agents, over real servers on loopback.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <thread>

#include "common/token.h"
#include "paceline/v1/snapshots.grpc.pb.h"
#include "tests/support/temp_folder.h"
#include "worker/agent/snapshot_copier.h"
#include "worker/agent/snapshot_folder.h"
#include "worker/agent/snapshot_server.h"
#include "worker/checkpoint/snapshot_file.h"

namespace paceline {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr auto kPatience = 30s;
constexpr std::size_t kBytes = (3 << 20) + 5;  // of a state: three chunks and a bit
constexpr int kRank = 3;

v1::GenerationKey Key(std::uint64_t generation) {
  v1::GenerationKey key;
  key.set_run_id("run");
  key.set_generation(generation);
  return key;
}

std::vector<std::byte> StateOf(std::int64_t step, std::size_t bytes = kBytes) {
  std::vector<std::byte> state(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    state[i] = static_cast<std::byte>(i * 7 + i / 1000 + step);
  return state;
}

// Node "a" serves what it has; node "b" copies.
class SnapshotCopyTest : public ::testing::Test {
 protected:
  SnapshotCopyTest() {
    EXPECT_TRUE(ReadOrMakeToken(token_).ok());
    StartServer(64);
    StartCopier(token_);
  }
  ~SnapshotCopyTest() override { copier_.reset(); }

  void StartServer(int readers_max) {
    server_.reset();
    auto server = SnapshotServer::Start({.ip = "127.0.0.1",
                                         .token_file = token_,
                                         .root = folder_ / "a",
                                         .node = "a",
                                         .readers_max = readers_max});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void StartCopier(const std::string& token_file) {
    copier_.reset();
    copier_ = std::make_unique<SnapshotCopier>(SnapshotCopierOptions{
        .token_file = token_file,
        .root = folder_ / "b",
        .node = "b",
        .on_lost = [this](SnapshotLost event) { Note(lost_, event); },
        .on_copied = [this](SnapshotCopied event) { Note(copied_, event); },
        .on_fetched = [this](SnapshotFetched event) { Note(fetched_, event); }});
  }
  template <typename Event>
  void Note(std::deque<Event>& events, const Event& event) {
    const std::lock_guard lock(mutex_);
    events.push_back(event);
    changed_.notify_all();
  }
  template <typename Event>
  Event Next(std::deque<Event>& events) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return !events.empty(); }));
    if (events.empty()) return {};
    Event event = events.front();
    events.pop_front();
    return event;
  }

  // Rank 3 of node "a" takes a snapshot into one of its files.
  void Take(int which, std::int64_t step, std::uint64_t generation = 1,
            std::size_t bytes = kBytes) {
    const std::string folder = SnapshotFolder(folder_ / "a", "run", "a");
    std::filesystem::create_directories(folder);
    auto file = SnapshotFile::Open(SnapshotPath(folder, kRank, which), bytes);
    ASSERT_TRUE(file.ok()) << file.status();
    std::vector<std::byte> state = StateOf(step, bytes);
    const std::array<std::span<std::byte>, 1> arrays = {state};
    const std::string digest = file->Fill(arrays);
    file->Finish({.run_id = "run", .generation = generation, .rank = kRank, .step = step}, digest);
    server_->OnTaken();
  }
  SnapshotFetched Fetch(std::int64_t step, std::chrono::milliseconds limit = kPatience,
                        const std::string& address = "") {
    FetchSnapshots task{.key = Key(2), .step = step, .limit = limit};
    v1::SnapshotSource& source = task.sources.emplace_back();
    source.set_to(5);
    source.set_from(kRank);
    source.set_node("a");
    source.set_address(address.empty() ? server_->address() : address);
    copier_->Fetch(task);
    return Next(fetched_);
  }
  void Copy(std::uint64_t generation, std::int64_t base_step) {
    CopySnapshots task{.key = Key(generation), .base_step = base_step};
    v1::SnapshotCopy& copy = task.copies.emplace_back();
    copy.set_rank(kRank);
    copy.set_node("a");
    copy.set_address(server_->address());
    copier_->Copy(task);
  }
  // The steps of which "b" holds a whole copy whose bytes are those that were taken.
  std::vector<std::int64_t> Copies() const {
    const std::string folder = SnapshotCopiesFolder(folder_ / "b", "run", "b");
    std::vector<std::int64_t> steps;
    for (const SnapshotHead& head : ListSnapshots(folder)) {
      std::vector<std::byte> state(kBytes);
      if (!ReadSnapshot(folder, "run", head.rank, head.step, {std::span(state)}).ok()) continue;
      if (state == StateOf(head.step)) steps.push_back(head.step);
    }
    return steps;
  }
  std::unique_ptr<v1::Snapshots::Stub> Stub() const {
    return v1::Snapshots::NewStub(
        grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
  }
  static v1::ReadSnapshotRequest Asking(std::int64_t after_step) {
    v1::ReadSnapshotRequest request;
    request.set_run_id("run");
    request.set_rank(kRank);
    request.set_generation(1);
    request.set_after_step(after_step);
    return request;
  }
  void Authorize(grpc::ClientContext& context) const {
    context.AddMetadata("authorization", BearerOf(*ReadToken(token_)));
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
  }
  // Reads the whole answer.
  grpc::Status Ask(const v1::ReadSnapshotRequest& request) const {
    grpc::ClientContext context;
    Authorize(context);
    const auto stub = Stub();
    const auto reader = stub->ReadSnapshot(&context, request);
    v1::SnapshotChunk chunk;
    while (reader->Read(&chunk)) {
    }
    return reader->Finish();
  }

  TempFolder folder_;
  const std::string token_ = folder_ / "token";
  std::unique_ptr<SnapshotServer> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<SnapshotLost> lost_;
  std::deque<SnapshotCopied> copied_;
  std::deque<SnapshotFetched> fetched_;
  std::unique_ptr<SnapshotCopier> copier_;  // last: its threads use the rest
};

TEST_F(SnapshotCopyTest, WhatIsFetchedIsWhatWasTaken) {
  Take(0, 10);
  Take(1, 20);
  const SnapshotFetched fetched = Fetch(10);
  EXPECT_EQ(fetched.status, absl::OkStatus());
  EXPECT_EQ(fetched.source.to(), 5);
  EXPECT_EQ(fetched.bytes, static_cast<std::int64_t>(kBytes));
  EXPECT_THAT(Copies(), testing::ElementsAre(10));
  EXPECT_EQ(Fetch(15).status.code(), absl::StatusCode::kNotFound);
}

TEST_F(SnapshotCopyTest, ABuddyFollowsWhatIsTaken) {
  Copy(1, 0);
  int which = 0;
  for (const std::int64_t step : {10, 20, 30}) {
    Take(which, step);
    which = 1 - which;
    const SnapshotCopied copied = Next(copied_);
    EXPECT_EQ(copied.status, absl::OkStatus());
    EXPECT_EQ(copied.step, step);
  }
  EXPECT_THAT(Copies(), testing::ElementsAre(20, 30));
  EXPECT_EQ(Next(lost_).step, 10) << "told before it was written over";
}

// The next generation goes back to step 20: what lies behind is of another lineage, on both sides.
TEST_F(SnapshotCopyTest, CopiesKeepToTheLineage) {
  Take(0, 20);
  Take(1, 30);
  Copy(1, 0);
  EXPECT_EQ(Next(copied_).step, 30);
  Copy(2, 20);
  EXPECT_EQ(Next(copied_).step, 20) << "step 30 is generation 1's";
  Take(1, 30, /*generation=*/2);
  EXPECT_EQ(Next(copied_).step, 30);
  const std::string copies = SnapshotCopiesFolder(folder_ / "b", "run", "b");
  for (const SnapshotHead& head : ListSnapshots(copies)) {
    EXPECT_EQ(head.generation, head.step == 30 ? 2u : 1u);
  }
}

TEST_F(SnapshotCopyTest, DamagedBytesMakeNoCopy) {
  Take(0, 10);
  Take(1, 20);
  ASSERT_TRUE(Fetch(10).status.ok());
  std::fstream file(SnapshotPath(SnapshotFolder(folder_ / "a", "run", "a"), kRank, 1),
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(2'000'000);
  file.put('?').put('?');
  file.close();
  const SnapshotFetched fetched = Fetch(20);
  EXPECT_EQ(fetched.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(fetched.status.message()), HasSubstr("digest"));
  EXPECT_THAT(Copies(), testing::ElementsAre(10)) << "the one before stays whole";
}

TEST_F(SnapshotCopyTest, ASnapshotThatIsWrittenOverWhileItIsReadIsNotTakenForWhole) {
  constexpr std::size_t kMuch = 48 << 20;  // more than lies between two ends of a stream
  Take(0, 10, 1, kMuch);
  grpc::ClientContext context;
  Authorize(context);
  const auto stub = Stub();
  const auto reader = stub->ReadSnapshot(&context, Asking(0));
  v1::SnapshotChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.head().step(), 10);
  Take(0, 30, 1, kMuch);
  while (reader->Read(&chunk)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(SnapshotCopyTest, WhoHasNotTheTokenReadsNothing) {
  Take(0, 10);
  const std::string other = folder_ / "other-token";
  ASSERT_TRUE(ReadOrMakeToken(other).ok());
  StartCopier(other);
  EXPECT_EQ(Fetch(10).status.code(), absl::StatusCode::kUnauthenticated);
  grpc::ClientContext context;
  const auto stub = Stub();
  const auto reader = stub->ReadSnapshot(&context, Asking(0));
  v1::SnapshotChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(SnapshotCopyTest, ARunsNameLeadsNowhereElse) {
  v1::ReadSnapshotRequest request = Asking(0);
  request.set_run_id("../a/run");
  EXPECT_EQ(Ask(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.set_run_id("run");
  request.set_rank(-1);
  EXPECT_EQ(Ask(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SnapshotCopyTest, AnAgentThatDoesNotAnswerIsGivenUp) {
  const int silent = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(silent, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(silent, 1), 0);
  ASSERT_EQ(::getsockname(silent, reinterpret_cast<sockaddr*>(&address), &length), 0);
  const SnapshotFetched fetched =
      Fetch(10, 200ms, "127.0.0.1:" + std::to_string(ntohs(address.sin_port)));
  EXPECT_FALSE(fetched.status.ok());
  ::close(silent);
}

TEST_F(SnapshotCopyTest, AServerHasABoundForItsReaders) {
  StartServer(/*readers_max=*/1);
  grpc::Status waited;
  std::thread waits([&] {
    v1::ReadSnapshotRequest request = Asking(0);
    request.set_wait_ms(10'000);
    do {
      waited = Ask(request);  // refused while the other one is being answered
    } while (waited.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  });
  // Until the other has its place this one is told that there is nothing.
  grpc::Status status;
  do {
    status = Ask(Asking(100));
  } while (status.error_code() == grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  Take(0, 10);
  waits.join();
  EXPECT_TRUE(waited.ok()) << waited.error_message();
}

// A task that waits for a snapshot lets go at once, and its files are the next one's.
TEST_F(SnapshotCopyTest, AStoppedTaskMakesRoomForTheNext) {
  Copy(1, 0);
  copier_->Stop(Key(7));  // another generation's: it goes on
  Take(0, 10);
  EXPECT_EQ(Next(copied_).step, 10);
  copier_->Stop(Key(1));
  Take(1, 20);
  EXPECT_TRUE(Fetch(20).status.ok());
  EXPECT_THAT(Copies(), testing::ElementsAre(10, 20));
}

TEST(SnapshotRemovalTest, WhatIsRemovedIsOutOfTheWayAtOnce) {
  const TempFolder folder;
  const std::string root = folder / "root";
  const std::string own = SnapshotFolder(root, "run", "a");
  const std::string copies = SnapshotCopiesFolder(root, "run", "a");
  std::filesystem::create_directories(copies);
  std::filesystem::create_directories(SnapshotFolder(root, "other", "a"));
  WriteWhole(SnapshotPath(own, 0, 0), "snapshot");
  WriteWhole(SnapshotPath(own, 1, 0), "snapshot");
  WriteWhole(SnapshotPath(copies, 1, 1), "snapshot");
  {
    SnapshotRemoval removal(root, "a");
    removal.Remove("run", {{.rank = 1, .copies = false}});
    EXPECT_FALSE(std::filesystem::exists(SnapshotPath(own, 1, 0)));
    EXPECT_TRUE(std::filesystem::exists(SnapshotPath(own, 0, 0)));
    EXPECT_TRUE(std::filesystem::exists(SnapshotPath(copies, 1, 1)));
    removal.Remove("run");
    EXPECT_FALSE(std::filesystem::exists(root + "/run"));
    std::filesystem::create_directories(own);  // the run comes back
    WriteWhole(SnapshotPath(own, 0, 0), "another");
  }
  EXPECT_EQ(ReadWhole(SnapshotPath(own, 0, 0)), "another");
  EXPECT_TRUE(std::filesystem::is_empty(root + "/.gone/a"));
  EXPECT_THAT(FindSnapshots(root, "", "a"), IsEmpty());
  EXPECT_TRUE(std::filesystem::exists(root + "/other"));
}

}  // namespace
}  // namespace paceline
