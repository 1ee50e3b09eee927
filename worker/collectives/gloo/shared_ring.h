// What ranks of one machine send each other without the network: rings in shared memory.
//
// Every rank of a group has an inbox, one ring for each sender and the bell that wakes its owner.
// It is anonymous memory (memfd), which peers open through /proc: nothing is left behind however
// a rank ends, and only processes of the same user get at it. What has been written stays
// readable after the writer's death.
// Invariant: a ring has one writer and one reader. Message frames of one ring are read in the
// order they were written in; a reader that expects another frame than the next one moves nothing.
// Threading: one thread moves transfers and waits; Ring may come from any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/clock.h"
#include "common/status.h"

namespace paceline {

// A futex that counts: whoever sleeps on it wakes when it is rung.
class Bell {
 public:
  // Read before looking for work: Wait returns at once if the bell has rung since.
  std::uint32_t rings() const { return rings_.load(std::memory_order_seq_cst); }
  void Ring();
  void Wait(std::uint32_t seen, SteadyTime deadline);

 private:
  std::atomic<std::uint32_t> rings_{0};
  std::atomic<std::uint32_t> sleeping_{0};
};

// What one message of an exchange still has to move.
struct RingTransfer {
  std::uint64_t slot = 0;     // which message: the same on both ends
  std::byte* data = nullptr;  // read by Write, written by Read
  std::size_t bytes = 0;
  std::size_t moved = 0;  // of the frame: head, data, padding

  bool done() const { return bytes == 0 || moved == FrameBytes(); }
  std::size_t FrameBytes() const;
};

// One end of a ring. Borrowed from the inbox it lies in.
class SharedRing {
 public:
  static constexpr std::size_t kBytes = 256 << 10;

  // Positions count bytes since the beginning; each is written by one side.
  struct Positions {
    alignas(64) std::atomic<std::uint64_t> written{0};
    alignas(64) std::atomic<std::uint64_t> read{0};
  };

  SharedRing() = default;
  // `other`: the bell of whoever is at the other end.
  SharedRing(Positions* positions, std::byte* bytes, Bell* other)
      : positions_(positions), bytes_(bytes), other_(other) {}

  // Moves what there is room for. True: something moved.
  bool Write(RingTransfer& transfer);
  // Moves what has arrived, as long as it is of the message that is expected. True: something
  // moved. kDataLoss: the positions can't be.
  absl::StatusOr<bool> Read(RingTransfer& transfer);

 private:
  Positions* positions_ = nullptr;
  std::byte* bytes_ = nullptr;
  Bell* other_ = nullptr;
};

// The shared memory of one rank's inbox, mapped.
class SharedInbox {
 public:
  SharedInbox() = default;
  SharedInbox(SharedInbox&& other) noexcept { *this = std::move(other); }
  SharedInbox& operator=(SharedInbox&& other) noexcept;
  ~SharedInbox();

  // With a ring for each of `senders` ranks. kUnavailable: the system has no such memory left.
  static absl::StatusOr<SharedInbox> Create(int senders);
  // The inbox that a peer published. kUnavailable: it can't be opened from here.
  static absl::StatusOr<SharedInbox> Open(const std::string& address, int senders);

  // Where peers open it: "MACHINE PROCESS DESCRIPTOR TOKEN". Valid until Close.
  const std::string& address() const { return address_; }
  // Peers that have not opened it can't any more; the mapping stays.
  void Close();

  explicit operator bool() const { return memory_ != nullptr; }
  Bell& bell() const;
  // The ring that `sender` writes and the owner reads, `other` being the bell of the other end.
  SharedRing RingFrom(int sender, Bell& other) const;

 private:
  static absl::StatusOr<SharedInbox> Map(int descriptor, int senders);

  void* memory_ = nullptr;
  std::size_t memory_bytes_ = 0;
  int descriptor_ = -1;
  int senders_ = 0;
  std::string address_;
};

// Whether two published addresses are of ranks that could share memory: the same boot of the
// same machine, and the same process and network name spaces (ranks that a network separates
// are to notice when it is cut).
bool OnOneMachine(const std::string& address, const std::string& other);

}  // namespace paceline
