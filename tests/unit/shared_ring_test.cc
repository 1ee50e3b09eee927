#include "worker/collectives/gloo/shared_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

namespace paceline {
namespace {

using testing::HasSubstr;

std::vector<std::byte> Pattern(std::size_t bytes, int seed) {
  std::vector<std::byte> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    values[i] = static_cast<std::byte>(i * 31 + i / 251 + static_cast<std::size_t>(seed));
  }
  return values;
}

RingTransfer Of(std::vector<std::byte>& data, std::uint64_t slot) {
  return {.slot = slot, .data = data.data(), .bytes = data.size()};
}

// Both ends of the ring from rank 1 to rank 0, the memory mapped once for each, as in two ranks.
struct Pair {
  Pair() {
    owner = *SharedInbox::Create(2);
    writers = *SharedInbox::Open(owner.address(), 2);
    write = writers.RingFrom(1, writers.bell());
    read = owner.RingFrom(1, writer_bell);
  }
  SharedInbox owner;
  SharedInbox writers;
  Bell writer_bell;
  SharedRing write;
  SharedRing read;
};

TEST(SharedRingTest, MessagesOfEverySizeArriveAsTheyWereSent) {
  Pair pair;
  for (const std::size_t bytes :
       {1u, 63u, 64u, 65u, 4096u, 100'003u, 262'080u, 262'144u, 999'999u}) {
    SCOPED_TRACE(bytes);
    std::vector<std::byte> sent = Pattern(bytes, 7);
    std::vector<std::byte> received(bytes);
    RingTransfer send = Of(sent, bytes);
    RingTransfer recv = Of(received, bytes);
    while (!send.done() || !recv.done()) {
      const bool wrote = pair.write.Write(send);
      const absl::StatusOr<bool> read = pair.read.Read(recv);
      ASSERT_TRUE(read.ok()) << read.status();
      ASSERT_TRUE(wrote || *read) << "neither end gets on";
    }
    EXPECT_EQ(sent, received);
  }
}

TEST(SharedRingTest, WriterStopsAtAFullRingAndReaderAtAnEmptyOne) {
  Pair pair;
  std::vector<std::byte> sent = Pattern(SharedRing::kBytes * 2, 1);
  RingTransfer send = Of(sent, 1);
  EXPECT_TRUE(pair.write.Write(send));
  EXPECT_FALSE(send.done());
  EXPECT_EQ(send.moved, SharedRing::kBytes);
  EXPECT_FALSE(pair.write.Write(send));

  std::vector<std::byte> received(sent.size());
  RingTransfer recv = Of(received, 1);
  EXPECT_THAT(pair.read.Read(recv), testing::Eq(absl::StatusOr<bool>(true)));
  EXPECT_THAT(pair.read.Read(recv), testing::Eq(absl::StatusOr<bool>(false)));
  EXPECT_EQ(recv.moved, SharedRing::kBytes);
  EXPECT_TRUE(pair.write.Write(send));
}

// A rank in another operation, or with another count, must not get what was not meant for it.
TEST(SharedRingTest, MessageOfAnotherSlotOrSizeIsLeftWhereItIs) {
  Pair pair;
  std::vector<std::byte> sent = Pattern(100, 1);
  RingTransfer send = Of(sent, 5);
  ASSERT_TRUE(pair.write.Write(send));

  std::vector<std::byte> received(100);
  std::vector<std::byte> longer(101);
  RingTransfer other_slot = Of(received, 6);
  RingTransfer other_size = Of(longer, 5);
  EXPECT_FALSE(*pair.read.Read(other_slot));
  EXPECT_FALSE(*pair.read.Read(other_size));
  RingTransfer right = Of(received, 5);
  EXPECT_TRUE(*pair.read.Read(right));
  EXPECT_EQ(received, sent);
}

TEST(SharedRingTest, WhatADeadWriterWroteStaysReadable) {
  Pair pair;
  std::vector<std::byte> sent = Pattern(1000, 3);
  const pid_t child = fork();
  if (child == 0) {
    absl::StatusOr<SharedInbox> inbox = SharedInbox::Open(pair.owner.address(), 2);
    if (!inbox.ok()) _exit(1);
    RingTransfer send = Of(sent, 1);
    inbox->RingFrom(1, inbox->bell()).Write(send);
    _exit(send.done() ? 0 : 2);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  std::vector<std::byte> received(1000);
  RingTransfer recv = Of(received, 1);
  EXPECT_TRUE(*pair.read.Read(recv));
  EXPECT_EQ(received, sent);
}

TEST(SharedRingTest, RingBeforeTheWaitEndsItAtOnce) {
  Bell bell;
  const std::uint32_t seen = bell.rings();
  bell.Ring();
  bell.Wait(seen, SteadyTime::max());  // hangs if the ring is lost
  EXPECT_EQ(bell.rings(), seen + 1);
}

TEST(SharedRingTest, WaitEndsAtItsDeadline) {
  Bell bell;
  const SteadyTime deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  while (std::chrono::steady_clock::now() < deadline) bell.Wait(bell.rings(), deadline);
  EXPECT_EQ(bell.rings(), 0u);
}

TEST(SharedRingTest, SleeperIsWokenFromAnotherThread) {
  Bell bell;
  std::jthread sleeper([&bell] {
    while (bell.rings() == 0) bell.Wait(0, SteadyTime::max());
  });
  bell.Ring();
}

TEST(SharedInboxTest, WhatIsNoInboxOfTheGroupIsRefused) {
  absl::StatusOr<SharedInbox> inbox = SharedInbox::Create(3);
  ASSERT_TRUE(inbox.ok()) << inbox.status();
  const std::string address = inbox->address();
  EXPECT_TRUE(SharedInbox::Open(address, 3).ok());
  EXPECT_EQ(SharedInbox::Open(address, 4).status().code(), absl::StatusCode::kUnavailable);
  const std::string other_token = address.substr(0, address.rfind(' ')) + " 7";
  EXPECT_THAT(std::string(SharedInbox::Open(other_token, 3).status().message()),
              HasSubstr("another group's inbox"));
  EXPECT_THAT(std::string(SharedInbox::Open("somewhere", 3).status().message()),
              HasSubstr("no address"));
  EXPECT_TRUE(OnOneMachine(address, address));
  EXPECT_FALSE(OnOneMachine(address, "elsewhere 1 2 3"));
  EXPECT_FALSE(OnOneMachine("", ""));

  inbox->Close();
  EXPECT_EQ(SharedInbox::Open(address, 3).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace paceline
