#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>

#include "tests/support/rank_threads.h"
#include "worker/collectives/communicator.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kInt32,
                               DataType::kInt64, DataType::kUint8};
// Sanitizers slow everything down, and every byte that passes a socket most of all.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr milliseconds kAbortLimit(10'000);
constexpr std::size_t kCounts[] = {0, 1, 7, 4'099};
#else
constexpr milliseconds kAbortLimit(100);
constexpr std::size_t kCounts[] = {0, 1, 7, 1'021, 40'003};
#endif

// What rank `rank` brings to an operation: values of all magnitudes, so that a sum in another
// order has other bits.
template <typename T>
std::vector<T> Values(int rank, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(rank * 7919 + count));
  std::vector<T> values(count);
  for (T& value : values) {
    if constexpr (std::is_floating_point_v<T>) {
      const double sign = random() % 2 == 0 ? 1.0 : -1.0;
      value = static_cast<T>(
          sign * std::ldexp(1.0 + random() * 0x1p-32, static_cast<int>(random() % 40) - 20));
    } else {
      value = static_cast<T>(random());
    }
  }
  return values;
}

template <typename T>
std::vector<T> SumOfRanks(int size, std::size_t count) {
  std::vector<T> sum = Values<T>(0, count);
  for (int rank = 1; rank < size; ++rank) {
    const std::vector<T> values = Values<T>(rank, count);
    for (std::size_t i = 0; i < count; ++i) {
      if constexpr (std::is_floating_point_v<T>) {
        sum[i] += values[i];
      } else {
        sum[i] = static_cast<T>(static_cast<std::uint64_t>(sum[i]) +
                                static_cast<std::uint64_t>(values[i]));
      }
    }
  }
  return sum;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Calls check.operator()<T>(type) for each data type.
template <typename Check>
void ForEachType(Check check) {
  for (const DataType type : kTypes) {
    switch (type) {
      case DataType::kFloat32:
        check.template operator()<float>(type);
        break;
      case DataType::kFloat64:
        check.template operator()<double>(type);
        break;
      case DataType::kInt32:
        check.template operator()<std::int32_t>(type);
        break;
      case DataType::kInt64:
        check.template operator()<std::int64_t>(type);
        break;
      case DataType::kUint8:
        check.template operator()<std::uint8_t>(type);
        break;
    }
  }
}

void CheckReductions(Communicator& communicator) {
  const int rank = communicator.rank();
  const int size = communicator.size();
  Stream stream(Stream::Mode::kInline, "test");
  for (const std::size_t count : kCounts) {
    ForEachType([&]<typename T>(DataType type) {
      std::vector<T> reduced = Values<T>(rank, count);
      communicator.AllReduceSum(stream, "reduced", reduced.data(), count, type);
      ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
      EXPECT_TRUE(SameBits(reduced, SumOfRanks<T>(size, count))) << count;

      std::vector<T> send = Values<T>(rank, count * size);
      std::vector<T> shard(count);
      communicator.ReduceScatterSum(stream, "shard", send.data(), shard.data(), count, type);
      ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
      const std::vector<T> sum = SumOfRanks<T>(size, count * size);
      EXPECT_TRUE(SameBits(
          shard, std::vector<T>(sum.begin() + rank * count, sum.begin() + (rank + 1) * count)));

      // In place: the shard lands where it lies, and the gather starts from there.
      std::vector<T> whole = Values<T>(rank, count * size);
      T* own = whole.data() + rank * count;
      communicator.ReduceScatterSum(stream, "in place", whole.data(), own, count, type);
      communicator.AllGather(stream, "in place", own, whole.data(), count, type);
      ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
      EXPECT_TRUE(SameBits(whole, sum)) << count;
    });
  }
}

void CheckMoves(Communicator& communicator) {
  const int rank = communicator.rank();
  const int size = communicator.size();
  Stream stream(Stream::Mode::kThread, "test");
  for (const std::size_t count : kCounts) {
    ForEachType([&]<typename T>(DataType type) {
      const std::vector<T> own = Values<T>(rank, count);
      std::vector<T> gathered(count * size);
      communicator.AllGather(stream, "gathered", own.data(), gathered.data(), count, type);
      ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
      for (int peer = 0; peer < size; ++peer) {
        EXPECT_TRUE(SameBits(
            std::vector<T>(gathered.begin() + peer * count, gathered.begin() + (peer + 1) * count),
            Values<T>(peer, count)));
      }

      const int root = static_cast<int>(count) % size;
      std::vector<T> broadcast = own;
      communicator.Broadcast(stream, "broadcast", broadcast.data(), count, type, root);
      communicator.Barrier(stream, "barrier");
      ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
      EXPECT_TRUE(SameBits(broadcast, Values<T>(root, count)));
    });
  }
}

// Rank s sends (s + 2 r) % 4 times 100 elements to rank r: some get nothing.
void CheckAllToAll(Communicator& communicator) {
  const int rank = communicator.rank();
  const int size = communicator.size();
  const auto count_from_to = [](int from, int to) {
    return static_cast<std::size_t>((from + 2 * to) % 4 * 100);
  };
  const auto value = [](int from, int to, std::size_t i) { return from * 1e6 + to * 1e4 + i; };
  std::vector<std::size_t> send_counts, send_offsets, recv_counts, recv_offsets;
  std::vector<double> send;
  std::size_t received = 5;  // the offsets need not begin at zero
  for (int peer = 0; peer < size; ++peer) {
    send_offsets.push_back(send.size());
    send_counts.push_back(count_from_to(rank, peer));
    for (std::size_t i = 0; i < send_counts.back(); ++i) send.push_back(value(rank, peer, i));
    recv_counts.push_back(count_from_to(peer, rank));
    recv_offsets.push_back(received);
    received += recv_counts.back();
  }
  std::vector<double> recv(received, -1.0);
  Stream stream(Stream::Mode::kInline, "test");

  communicator.AllToAll(stream, "tokens", send.data(), send_counts.data(), send_offsets.data(),
                        recv.data(), recv_counts.data(), recv_offsets.data(), DataType::kFloat64);

  ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
  EXPECT_EQ(recv[0], -1.0);
  for (int peer = 0; peer < size; ++peer) {
    for (std::size_t i = 0; i < recv_counts[peer]; ++i) {
      ASSERT_EQ(recv[recv_offsets[peer] + i], value(peer, rank, i));
    }
  }
}

// Around the ring: even ranks send first.
void CheckSendRecv(Communicator& communicator) {
  const int rank = communicator.rank();
  const int size = communicator.size();
  if (size == 1) return;
  Stream stream(Stream::Mode::kInline, "test");
  for (int round = 0; round < 20; ++round) {
    const int next = (rank + 1) % size;
    const int previous = (rank + size - 1) % size;
    std::vector<std::int64_t> out(1000 + round, rank * 100 + round);
    std::vector<std::int64_t> in(out.size());
    const auto send = [&] {
      communicator.Send(stream, "ring", out.data(), out.size(), DataType::kInt64, next);
    };
    if (rank % 2 == 0 && rank != size - 1) send();
    communicator.Recv(stream, "ring", in.data(), in.size(), DataType::kInt64, previous);
    if (rank % 2 != 0 || rank == size - 1) send();
    ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
    ASSERT_EQ(in, std::vector<std::int64_t>(in.size(), previous * 100 + round));
  }
}

TEST(GlooCommunicatorTest, OperationsAreExactForOneToFiveRanks) {
  for (int size = 1; size <= 5; ++size) {
    SCOPED_TRACE(size);
    const auto communicators = ConnectRanks(size);
    ASSERT_EQ(std::ssize(communicators), size);
    RunRanks(communicators, [](Communicator& communicator) {
      CheckReductions(communicator);
      CheckMoves(communicator);
      CheckAllToAll(communicator);
      CheckSendRecv(communicator);
    });
  }
}

// Parts beyond the size of one piece.
TEST(GlooCommunicatorTest, LargeAllReduceIsExact) {
  const auto communicators = ConnectRanks(3);
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
TEST(GlooCommunicatorTest, RankThatDidItsPartAndLeftFailsNobody) {
  for (int round = 0; round < 10; ++round) {
    auto communicators = ConnectRanks(4);
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
TEST(GlooCommunicatorTest, AbortInTheMiddleOfATransferReturnsPromptly) {
  auto communicators = ConnectRanks(2);
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

TEST(GlooCommunicatorTest, AbortWakesEveryWaiterWithin100Milliseconds) {
  auto communicators = ConnectRanks(4);
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
    EXPECT_GT(progress.busy_seconds, 0.0);
  }
}

// An abort that falls between two operations, or races with the start of one, is not lost.
TEST(GlooCommunicatorTest, AbortAtAnyInstantIsKept) {
  for (int round = 0; round < 15; ++round) {
    auto communicators = ConnectRanks(2);
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
      stream.Reset();
      communicator.Barrier(stream, "after");
      EXPECT_EQ(stream.status(), absl::AbortedError("now"));
    });
  }
}

TEST(GlooCommunicatorTest, TimeoutNamesOperationOwnRankAndTheSilentPeer) {
  auto communicators = ConnectRanks(4, milliseconds(300));
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
TEST(GlooCommunicatorTest, LostPeerIsNamedAtOnceAlsoWhileWaitingForAnother) {
  auto communicators = ConnectRanks(3);
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
TEST(GlooCommunicatorTest, RanksThatDisagreeOnTheCountTimeOut) {
  auto communicators = ConnectRanks(2, milliseconds(200));
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

TEST(GlooCommunicatorTest, SplitGroupsWorkApartAndNameRanksAsTheWhole) {
  const auto communicators = ConnectRanks(5);
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

TEST(GlooCommunicatorTest, BadRanksAreRefusedByName) {
  const auto communicators = ConnectRanks(2);
  ASSERT_EQ(communicators.size(), 2u);
  float value = 0;
  Stream stream(Stream::Mode::kInline, "test");
  communicators[0]->Broadcast(stream, "x", &value, 1, DataType::kFloat32, 2);
  EXPECT_EQ(stream.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(stream.status().message()), HasSubstr("root is 2"));
  stream.Reset();
  communicators[0]->Send(stream, "x", &value, 1, DataType::kFloat32, 0);
  EXPECT_EQ(stream.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(GlooCommunicatorTest, InterfaceThatIsNoAddressIsRefused) {
  CommunicatorOptions options;
  options.interface_address = "not-an-address";
  AddressBoard board(1);
  const auto made = MakeGlooCommunicator(options, board.ForRank(0));
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("not-an-address"));
}

TEST(GlooCommunicatorTest, PeerThatNeverConnectsEndsTheConnectAtItsLimit) {
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

TEST(GlooCommunicatorTest, AddressThatIsNoneIsRefusedWithItsRank) {
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

TEST(GlooCommunicatorTest, FailedExchangePassesThrough) {
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
  CheckReductions(*communicator);
  CheckMoves(*communicator);
  CheckAllToAll(*communicator);
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
