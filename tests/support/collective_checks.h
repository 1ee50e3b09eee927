// What every transport's collectives must do, as checks that each rank of a group runs.
// Invariant: expected sums are added in rank order, so a check that passes on two transports has
// seen the same bits on both.
// Threading: each rank on a thread, or in a process, of its own.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "tests/support/sanitizers.h"
#include "worker/collectives/communicator.h"
#include "worker/kernels/stream.h"

namespace paceline {

inline constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kInt32,
                                      DataType::kInt64, DataType::kUint8};
inline constexpr std::size_t kCounts[] = {0, 1, 7, 1'021, kSanitized ? 4'099 : 40'003};

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

inline void CheckReductions(Communicator& communicator) {
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

inline void CheckMoves(Communicator& communicator) {
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
inline void CheckAllToAll(Communicator& communicator) {
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
inline void CheckSendRecv(Communicator& communicator) {
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

// All of them.
inline void CheckOperations(Communicator& communicator) {
  CheckReductions(communicator);
  CheckMoves(communicator);
  CheckAllToAll(communicator);
  CheckSendRecv(communicator);
}

}  // namespace paceline
