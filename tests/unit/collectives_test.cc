#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "tests/support/collective_checks.h"
#include "tests/support/rank_threads.h"
#include "tests/support/sanitizers.h"
#include "worker/collectives/communicator.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr milliseconds kAbortLimit(kSanitized ? 10'000 : 100);

class GlooCommunicatorTest : public testing::TestWithParam<Sharing> {
 protected:
  static std::vector<std::unique_ptr<Communicator>> Connect(
      int size, milliseconds operation_timeout = std::chrono::seconds(20)) {
    return ConnectRanks(size, operation_timeout, GetParam());
  }
};
std::string NameOf(const testing::TestParamInfo<Sharing>& of) {
  constexpr std::array kNames = {"SharedMemory", "Tcp", "EvenRanksShareMemory"};
  return kNames[static_cast<std::size_t>(of.param)];
}
INSTANTIATE_TEST_SUITE_P(, GlooCommunicatorTest,
                         testing::Values(Sharing::kAll, Sharing::kNone, Sharing::kEvenRanks),
                         NameOf);

TEST_P(GlooCommunicatorTest, OperationsAreExactForOneToFiveRanks) {
  for (int size = 1; size <= 5; ++size) {
    SCOPED_TRACE(size);
    const auto communicators = Connect(size);
    ASSERT_EQ(std::ssize(communicators), size);
    RunRanks(communicators, CheckOperations);
  }
}

// Parts beyond the size of one piece.
TEST_P(GlooCommunicatorTest, LargeAllReduceIsExact) {
  const auto communicators = Connect(3);
  ASSERT_EQ(communicators.size(), 3u);
  constexpr std::size_t kCount = 2'500'001;
  const std::vector<double> expected = SumOfRanks<double>(3, kCount);
  RunRanks(communicators, [&](Communicator& communicator) {
    Stream stream(Stream::Mode::kThread, "test");
    std::vector<double> values = Values<double>(communicator.rank(), kCount);
    communicator.AllReduceSum(stream, "large", values.data(), kCount, DataType::kFloat64);
    EXPECT_TRUE(stream.Synchronize().ok()) << stream.status();
    EXPECT_TRUE(SameBits(values, expected));
  });
}

// The last operation of a run: whoever is through leaves at once, and must not take the others
// with it.
TEST_P(GlooCommunicatorTest, RankThatDidItsPartAndLeftFailsNobody) {
  for (int round = 0; round < 10; ++round) {
    auto communicators = Connect(4);
    ASSERT_EQ(communicators.size(), 4u);
    std::vector<std::jthread> threads;
    for (auto& communicator : communicators) {
      threads.emplace_back([&communicator] {
        Stream stream(Stream::Mode::kInline, "test");
        std::vector<float> values(100'000, 1.0f);
        communicator->AllReduceSum(stream, "last", values.data(), values.size(),
                                   DataType::kFloat32);
        communicator->Barrier(stream, "end");
        EXPECT_TRUE(stream.Synchronize().ok()) << stream.status();
        communicator.reset();
      });
    }
  }
}

// Transfers of several pieces that go on while the abort comes: nothing may touch the buffers
// after it (the sanitizers look).
TEST_P(GlooCommunicatorTest, AbortInTheMiddleOfATransferReturnsPromptly) {
  auto communicators = Connect(2);
  ASSERT_EQ(communicators.size(), 2u);
  constexpr std::size_t kCount = 30'000'000;
  std::vector<std::vector<std::uint8_t>> buffers(2, std::vector<std::uint8_t>(kCount, 1));
  std::vector<std::unique_ptr<Stream>> streams;
  for (int rank = 0; rank < 2; ++rank) {
    streams.push_back(std::make_unique<Stream>(Stream::Mode::kThread, "test"));
  }
  communicators[0]->Send(*streams[0], "large", buffers[0].data(), kCount, DataType::kUint8, 1);
  communicators[1]->Recv(*streams[1], "large", buffers[1].data(), kCount, DataType::kUint8, 0);
  while (communicators[1]->progress().entered == 0) std::this_thread::yield();

  const auto begin = std::chrono::steady_clock::now();
  for (const auto& communicator : communicators) communicator->Abort("stop");
  for (int rank = 0; rank < 2; ++rank) {
    const absl::Status status = streams[rank]->Synchronize();
    EXPECT_TRUE(status.ok() || status == absl::AbortedError("stop")) << status;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kAbortLimit);
  buffers.clear();
}

TEST_P(GlooCommunicatorTest, AbortWakesEveryWaiterWithin100Milliseconds) {
  auto communicators = Connect(4);
  ASSERT_EQ(communicators.size(), 4u);
  std::vector<float> buffers[4];
  std::vector<std::unique_ptr<Stream>> streams;
  // Rank 3 stays silent. The others have each begun and sent what they could.
  for (int rank = 0; rank < 3; ++rank) {
    buffers[rank].assign(1'000'000, 1.0f);
    streams.push_back(std::make_unique<Stream>(Stream::Mode::kThread, "test"));
    communicators[rank]->AllReduceSum(*streams[rank], "gradients", buffers[rank].data(),
                                      buffers[rank].size(), DataType::kFloat32);
  }
  for (int rank = 0; rank < 3; ++rank) {
    while (communicators[rank]->progress().entered == 0) std::this_thread::yield();
  }

  const auto begin = std::chrono::steady_clock::now();
  for (int rank = 0; rank < 3; ++rank) communicators[rank]->Abort("the generation has ended");
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(streams[rank]->Synchronize(), absl::AbortedError("the generation has ended"));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kAbortLimit);

  for (int rank = 0; rank < 3; ++rank) {
    const CommunicatorProgress progress = communicators[rank]->progress();
    EXPECT_STREQ(progress.operation, "gradients");
    EXPECT_EQ(progress.entered, 1u);
    EXPECT_EQ(progress.left, 1u);
  }
}

// An abort that falls between two operations, or races with the start of one, is not lost.
TEST_P(GlooCommunicatorTest, AbortAtAnyInstantIsKept) {
  for (int round = 0; round < 15; ++round) {
    auto communicators = Connect(2);
    ASSERT_EQ(communicators.size(), 2u);
    std::atomic<int> steps = 0;
    std::jthread aborter([&] {
      while (steps < round * 3) std::this_thread::yield();
      communicators[0]->Abort("now");
      communicators[1]->Abort("now");
    });
    RunRanks(communicators, [&](Communicator& communicator) {
      Stream stream(Stream::Mode::kInline, "test");
      std::vector<double> values(5'000, 1.0);
      while (stream.status().ok()) {
        communicator.AllReduceSum(stream, "loop", values.data(), values.size(), DataType::kFloat64);
        ++steps;
      }
      EXPECT_EQ(stream.status().code(), absl::StatusCode::kAborted) << stream.status();
      Stream after(Stream::Mode::kInline, "after");
      communicator.Barrier(after, "after");
      EXPECT_EQ(after.status(), absl::AbortedError("now"));
    });
  }
}

TEST_P(GlooCommunicatorTest, TimeoutNamesOperationOwnRankAndTheSilentPeer) {
  auto communicators = Connect(4, milliseconds(300));
  ASSERT_EQ(communicators.size(), 4u);
  absl::Status statuses[4];
  RunRanks(communicators, [&](Communicator& communicator) {
    if (communicator.rank() == 2) return;
    Stream stream(Stream::Mode::kInline, "test");
    std::vector<float> values(1'000'000, 1.0f);
    communicator.AllReduceSum(stream, "gradients", values.data(), values.size(),
                              DataType::kFloat32);
    statuses[communicator.rank()] = stream.status();
  });
  for (const int rank : {0, 1, 3}) {
    const std::string message(statuses[rank].message());
    EXPECT_EQ(statuses[rank].code(), absl::StatusCode::kDeadlineExceeded) << statuses[rank];
    EXPECT_THAT(message, HasSubstr("rank " + std::to_string(rank) + ": all-reduce"));
    EXPECT_THAT(message, HasSubstr("\"gradients\""));
    EXPECT_THAT(message, HasSubstr("300 ms"));
    EXPECT_THAT(message, HasSubstr("not heard from rank 2"));
  }
}

// Rank 0 waits for rank 1, which lives and is silent; it learns at once that rank 2 is gone.
TEST_P(GlooCommunicatorTest, LostPeerIsNamedAtOnceAlsoWhileWaitingForAnother) {
  auto communicators = Connect(3);
  ASSERT_EQ(communicators.size(), 3u);
  Stream stream(Stream::Mode::kThread, "test");
  std::vector<float> values(1'000'000, 1.0f);
  communicators[0]->AllReduceSum(stream, "gradients", values.data(), values.size(),
                                 DataType::kFloat32);
  while (communicators[0]->progress().entered == 0) std::this_thread::yield();

  const auto begin = std::chrono::steady_clock::now();
  communicators[2].reset();
  const absl::Status status = stream.Synchronize();

  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(1000));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 2 is gone"));
}

// Otherwise Gloo would end the process, or write beyond the shorter buffer.
TEST_P(GlooCommunicatorTest, RanksThatDisagreeOnTheCountTimeOut) {
  auto communicators = Connect(2, milliseconds(200));
  ASSERT_EQ(communicators.size(), 2u);
  RunRanks(communicators, [](Communicator& communicator) {
    Stream stream(Stream::Mode::kInline, "test");
    std::vector<float> own(100);
    std::vector<float> all(300);
    communicator.AllGather(stream, "uneven", own.data(), all.data(), 50 + communicator.rank(),
                           DataType::kFloat32);
    EXPECT_THAT(stream.status().code(), testing::AnyOf(absl::StatusCode::kDeadlineExceeded,
                                                       absl::StatusCode::kUnavailable));
  });
}

TEST_P(GlooCommunicatorTest, SplitGroupsWorkApartAndNameRanksAsTheWhole) {
  const auto communicators = Connect(5);
  std::vector<absl::Status> lost(5);
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < 5; ++rank) {
      threads.emplace_back([&, rank] {
        Communicator& all = *communicators[static_cast<std::size_t>(rank)];
        const std::vector<int> ranks =
            rank % 2 == 0 ? std::vector<int>{0, 2, 4} : std::vector<int>{1, 3};
        auto group = all.Split(ranks);
        ASSERT_TRUE(group.ok()) << group.status();
        EXPECT_EQ((*group)->rank(), rank / 2);
        EXPECT_EQ((*group)->size(), static_cast<int>(ranks.size()));
        Stream stream(Stream::Mode::kInline, "test");
        double sum = rank;
        (*group)->AllReduceSum(stream, "sum", &sum, 1, DataType::kFloat64);
        EXPECT_TRUE(stream.Synchronize().ok());
        EXPECT_EQ(sum, rank % 2 == 0 ? 6.0 : 4.0);
        if (rank == 3) return;  // its group loses it, and only its group
        (*group)->Barrier(stream, "barrier");
        lost[static_cast<std::size_t>(rank)] = stream.Synchronize();
      });
    }
  }
  EXPECT_THAT(std::string(lost[1].message()), testing::HasSubstr("rank 3 is gone"));
  for (const int rank : {0, 2, 4}) EXPECT_TRUE(lost[static_cast<std::size_t>(rank)].ok());
}

TEST(GlooConnectTest, BadRanksAreRefusedByName) {
  const auto communicators = ConnectRanks(2);
  ASSERT_EQ(communicators.size(), 2u);
  float value = 0;
  Stream stream(Stream::Mode::kInline, "test");
  communicators[0]->Broadcast(stream, "x", &value, 1, DataType::kFloat32, 2);
  EXPECT_EQ(stream.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(stream.status().message()), HasSubstr("root is 2"));
  Stream other(Stream::Mode::kInline, "other");
  communicators[0]->Send(other, "x", &value, 1, DataType::kFloat32, 0);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(GlooConnectTest, InterfaceThatIsNoAddressIsRefused) {
  CommunicatorOptions options;
  options.interface_address = "not-an-address";
  AddressBoard board(1);
  const auto made = MakeGlooCommunicator(options, board.ForRank(0));
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("not-an-address"));
}

TEST(GlooConnectTest, PeerThatNeverConnectsEndsTheConnectAtItsLimit) {
  CommunicatorOptions options;
  options.size = 2;
  options.connect_timeout = milliseconds(300);
  const auto begin = std::chrono::steady_clock::now();
  // The peer's address sorts above the own one, so this rank listens, and nobody comes.
  const auto made = MakeGlooCommunicator(options, [](const std::string& own) {
    return absl::StatusOr<std::vector<std::string>>({own, "127.9.9.9 9 0"});
  });
  EXPECT_EQ(made.status().code(), absl::StatusCode::kUnavailable) << made.status();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(2000));
}

TEST(GlooConnectTest, AddressThatIsNoneIsRefusedWithItsRank) {
  for (const char* bad : {"", "garbage", "127.0.0.1", "127.0.0.1 0 0", "127.0.0.1 99999 1",
                          "127.0.0.1 -1 1", "host 1 2"}) {
    CommunicatorOptions options;
    options.size = 2;
    const auto made = MakeGlooCommunicator(options, [bad](const std::string& own) {
      return absl::StatusOr<std::vector<std::string>>({own, bad});
    });
    EXPECT_EQ(made.status().code(), absl::StatusCode::kUnavailable) << bad;
    EXPECT_THAT(std::string(made.status().message()), HasSubstr("rank 1 published")) << bad;
  }
}

TEST(GlooConnectTest, FailedExchangePassesThrough) {
  CommunicatorOptions options;
  options.size = 2;
  const auto made = MakeGlooCommunicator(
      options, [](const std::string&) -> absl::StatusOr<std::vector<std::string>> {
        return absl::AbortedError("the plan has changed");
      });
  EXPECT_EQ(made.status(), absl::AbortedError("the plan has changed"));
}

TEST(SelfCommunicatorTest, OperationsCopyAndCount) {
  const auto communicator = MakeSelfCommunicator();
  EXPECT_EQ(communicator->size(), 1);
  CheckOperations(*communicator);
  EXPECT_GT(communicator->progress().entered, 0u);
  EXPECT_EQ(communicator->progress().entered, communicator->progress().left);
}

TEST(SelfCommunicatorTest, AbortFailsLaterOperations) {
  const auto communicator = MakeSelfCommunicator();
  communicator->Abort("stop");
  Stream stream(Stream::Mode::kInline, "test");
  communicator->Barrier(stream, "end");
  EXPECT_EQ(stream.status(), absl::AbortedError("stop"));
}

}  // namespace
}  // namespace paceline
