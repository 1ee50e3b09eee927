#include "worker/collectives/gloo/shared_ring.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <new>
#include <sstream>
#include <utility>

namespace paceline {
namespace {

// Everything moves in whole lines, so that heads and data stay aligned.
constexpr std::size_t kLine = 64;
// After so much the other end is told, so that both copy at the same time.
constexpr std::size_t kChunkBytes = 32 << 10;
static_assert(SharedRing::kBytes % kChunkBytes == 0 && kChunkBytes % kLine == 0);

// How a frame begins.
struct FrameHead {
  std::uint64_t slot;
  std::uint64_t bytes;
};
static_assert(sizeof(FrameHead) <= kLine);

// How an inbox begins; the positions of every ring follow, then the rings.
struct InboxHead {
  alignas(kLine) std::uint64_t token = 0;
  alignas(kLine) Bell bell;
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

std::size_t InboxBytes(int senders) {
  return sizeof(InboxHead) +
         static_cast<std::size_t>(senders) * (sizeof(SharedRing::Positions) + SharedRing::kBytes);
}

std::size_t RoundUp(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// Copies frame bytes [begin, begin + bytes) between the message and the ring. Whole lines;
// the first is the head, what lies behind the data is padding.
template <bool kToRing>
void CopyFrame(const RingTransfer& transfer, std::size_t begin, std::size_t bytes,
               std::byte* in_ring) {
  if (begin == 0) {
    if constexpr (kToRing) {
      const FrameHead head{transfer.slot, transfer.bytes};
      std::memcpy(in_ring, &head, sizeof head);
    }
    begin += kLine;
    bytes -= kLine;
    in_ring += kLine;
  }
  const std::size_t data_begin = begin - kLine;
  const std::size_t data_bytes =
      std::min(bytes, transfer.bytes - std::min(transfer.bytes, data_begin));
  if (data_bytes == 0) return;
  if constexpr (kToRing) {
    std::memcpy(in_ring, transfer.data + data_begin, data_bytes);
  } else {
    std::memcpy(transfer.data + data_begin, in_ring, data_bytes);
  }
}

absl::Status Refused(const std::string& what) {
  return absl::UnavailableError(what + ": " + std::strerror(errno));
}

std::string LinkOf(const char* path) {
  std::array<char, 128> text{};
  const ssize_t length = readlink(path, text.data(), text.size());
  return length > 0 ? std::string(text.data(), static_cast<std::size_t>(length)) : "";
}

// "" where the system does not tell.
std::string ThisMachine() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  const std::string processes = LinkOf("/proc/self/ns/pid");
  const std::string network = LinkOf("/proc/self/ns/net");
  if (boot.empty() || processes.empty() || network.empty()) return "";
  return boot + "/" + processes + "/" + network;
}

}  // namespace

void Bell::Ring() {
  rings_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) == 0) return;
  syscall(SYS_futex, &rings_, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

void Bell::Wait(std::uint32_t seen, SteadyTime deadline) {
  constexpr std::chrono::nanoseconds kLongest = std::chrono::hours(1);  // the caller waits again
  const auto left = std::clamp<std::chrono::nanoseconds>(
      deadline - std::chrono::steady_clock::now(), std::chrono::nanoseconds(0), kLongest);
  const timespec limit{.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000),
                       .tv_nsec = static_cast<long>(left.count() % 1'000'000'000)};
  sleeping_.store(1, std::memory_order_seq_cst);
  // The kernel sleeps only if the bell has not rung since `seen`.
  syscall(SYS_futex, &rings_, FUTEX_WAIT, seen, &limit, nullptr, 0);
  sleeping_.store(0, std::memory_order_seq_cst);
}

std::size_t RingTransfer::FrameBytes() const { return kLine + RoundUp(bytes); }

bool SharedRing::Write(RingTransfer& transfer) {
  bool any = false;
  while (!transfer.done()) {
    const std::uint64_t written = positions_->written.load(std::memory_order_relaxed);
    const std::uint64_t unread = written - positions_->read.load(std::memory_order_acquire);
    if (unread >= kBytes) break;  // full; a position that can't be is the reader's to refuse
    const std::size_t place = written % kBytes;
    const std::size_t bytes = std::min({kChunkBytes, static_cast<std::size_t>(kBytes - unread),
                                        kBytes - place, transfer.FrameBytes() - transfer.moved}) /
                              kLine * kLine;
    if (bytes == 0) break;
    CopyFrame<true>(transfer, transfer.moved, bytes, bytes_ + place);
    transfer.moved += bytes;
    positions_->written.store(written + bytes, std::memory_order_release);
    other_->Ring();
    any = true;
  }
  return any;
}

absl::StatusOr<bool> SharedRing::Read(RingTransfer& transfer) {
  bool any = false;
  while (!transfer.done()) {
    const std::uint64_t read = positions_->read.load(std::memory_order_relaxed);
    const std::uint64_t unread = positions_->written.load(std::memory_order_acquire) - read;
    if (unread > kBytes || unread % kLine != 0) {
      return absl::DataLossError("shared memory holds " + std::to_string(unread) +
                                 " unread bytes in a ring of " + std::to_string(kBytes));
    }
    if (unread == 0) break;
    const std::size_t place = read % kBytes;
    if (transfer.moved == 0) {
      FrameHead head;
      std::memcpy(&head, bytes_ + place, sizeof head);
      if (head.slot != transfer.slot || head.bytes != transfer.bytes) break;
    }
    const std::size_t bytes = std::min({kChunkBytes, static_cast<std::size_t>(unread),
                                        kBytes - place, transfer.FrameBytes() - transfer.moved});
    CopyFrame<false>(transfer, transfer.moved, bytes, bytes_ + place);
    transfer.moved += bytes;
    positions_->read.store(read + bytes, std::memory_order_release);
    other_->Ring();
    any = true;
  }
  return any;
}

SharedInbox& SharedInbox::operator=(SharedInbox&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(memory_bytes_, other.memory_bytes_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(senders_, other.senders_);
  std::swap(address_, other.address_);
  return *this;
}

SharedInbox::~SharedInbox() {
  if (memory_ != nullptr) munmap(memory_, memory_bytes_);
  Close();
}

void SharedInbox::Close() {
  if (descriptor_ != -1) close(descriptor_);
  descriptor_ = -1;
}

absl::StatusOr<SharedInbox> SharedInbox::Map(int descriptor, int senders) {
  SharedInbox inbox;
  inbox.descriptor_ = descriptor;  // closed with it, whatever happens
  inbox.senders_ = senders;
  inbox.memory_bytes_ = InboxBytes(senders);
  void* memory =
      mmap(nullptr, inbox.memory_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) return Refused("mmap of shared memory");
  inbox.memory_ = memory;
  return inbox;
}

absl::StatusOr<SharedInbox> SharedInbox::Create(int senders) {
  const std::string machine = ThisMachine();
  if (machine.empty()) return absl::UnavailableError("/proc does not tell which machine this is");
  const int descriptor = memfd_create("paceline-inbox", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor == -1) return Refused("memfd_create");
  // Nobody can cut it off under a reader (SIGBUS).
  if (ftruncate(descriptor, static_cast<off_t>(InboxBytes(senders))) != 0 ||
      fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    const absl::Status refused = Refused("shared memory of " + std::to_string(InboxBytes(senders)));
    close(descriptor);
    return refused;
  }
  ASSIGN_OR_RETURN(SharedInbox inbox, Map(descriptor, senders));
  auto* head = new (inbox.memory_) InboxHead();
  if (getrandom(&head->token, sizeof head->token, 0) != sizeof head->token) {
    return Refused("getrandom");
  }
  inbox.address_ = machine + " " + std::to_string(getpid()) + " " + std::to_string(descriptor) +
                   " " + std::to_string(head->token);
  return inbox;
}

absl::StatusOr<SharedInbox> SharedInbox::Open(const std::string& address, int senders) {
  std::istringstream in(address);
  std::string machine;
  std::int64_t process = 0;
  int peer_descriptor = -1;
  std::uint64_t token = 0;
  if (!(in >> machine >> process >> peer_descriptor >> token) || process <= 0 ||
      peer_descriptor < 0) {
    return absl::UnavailableError("\"" + address.substr(0, 200) + "\" is no address of an inbox");
  }
  const std::string path =
      "/proc/" + std::to_string(process) + "/fd/" + std::to_string(peer_descriptor);
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (descriptor == -1) return Refused(path);
  struct stat status = {};
  const int seals = fcntl(descriptor, F_GET_SEALS);  // -1: a file that can have none
  const bool fits = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
                    status.st_size == static_cast<off_t>(InboxBytes(senders)) && seals != -1 &&
                    (seals & F_SEAL_SHRINK) != 0;
  if (!fits) {
    close(descriptor);
    return absl::UnavailableError(path + " is no inbox of " + std::to_string(senders) + " senders");
  }
  ASSIGN_OR_RETURN(SharedInbox inbox, Map(descriptor, senders));
  if (static_cast<InboxHead*>(inbox.memory_)->token != token) {
    return absl::UnavailableError(path + " is another group's inbox");
  }
  inbox.Close();
  return inbox;
}

Bell& SharedInbox::bell() const { return static_cast<InboxHead*>(memory_)->bell; }

SharedRing SharedInbox::RingFrom(int sender, Bell& other) const {
  std::byte* memory = static_cast<std::byte*>(memory_) + sizeof(InboxHead);
  auto* positions = reinterpret_cast<SharedRing::Positions*>(memory);  // zero: nothing written
  std::byte* rings = memory + static_cast<std::size_t>(senders_) * sizeof(SharedRing::Positions);
  return SharedRing(positions + sender,
                    rings + static_cast<std::size_t>(sender) * SharedRing::kBytes, &other);
}

bool OnOneMachine(const std::string& address, const std::string& other) {
  const std::size_t end = address.find(' ');
  return end != std::string::npos && end > 0 && address.compare(0, end + 1, other, 0, end + 1) == 0;
}

}  // namespace paceline
