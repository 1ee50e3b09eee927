#include "worker/collectives/gloo/gloo_mesh.h"

#include <absl/strings/str_split.h>
#include <gloo/transport/pair.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "worker/collectives/gloo/gloo_connect.h"
#include "worker/collectives/gloo/peer_buffer.h"
#include "worker/collectives/gloo/shared_ring.h"

namespace paceline {
namespace {

using Direction = PeerBuffer::Direction;
using Outcome = PeerBuffer::Outcome;

// Nothing is ever sent on this slot; the receives posted there fail when their connection does.
constexpr std::uint64_t kWatchSlot = std::numeric_limits<std::uint64_t>::max();
// How long a failed rank keeps its connections, so that the others see what it saw (a dead
// peer) before they see that it left.
constexpr std::chrono::milliseconds kCloseDelay{100};
// Longer transfers go in pieces: Gloo does not stop in the middle of one, so this bounds how long
// an abort waits.
constexpr std::size_t kPieceBytes = 4 << 20;
// The exchange in which ranks of one machine agree on shared memory.
constexpr std::uint8_t kShareCode = GlooMesh::kCodes - 1;
// Between what Gloo publishes of a rank and where its inbox is.
constexpr char kInboxMark[] = " inbox ";

// Both ends compute the slot from what they believe the transfer to be. A rank that calls
// another operation, or another count, therefore never matches, rather than writing beyond a
// buffer.
std::uint64_t SlotOf(const GlooMesh::Operation& operation, std::size_t bytes) {
  const std::uint64_t folded = (bytes ^ (bytes >> 24) ^ (bytes >> 48)) & 0xffffff;
  return static_cast<std::uint64_t>(operation.code & 0x7f) << 56 |
         static_cast<std::uint64_t>(operation.sequence) << 24 | folded;
}

}  // namespace

struct GlooMesh::Impl {
  // What replaces the connection for transfers between ranks of one machine.
  struct SharedMemory {
    SharedInbox inbox;  // the peer's
    SharedRing to;
    SharedRing from;
    RingTransfer send;  // of the exchange that runs
    RingTransfer recv;
  };
  struct Peer {
    std::unique_ptr<PeerBuffer> buffer;    // none for the own rank, and after a failure
    std::unique_ptr<SharedMemory> shared;  // none: over the connection
    int recv_pending = 0;                  // pieces, of the exchange that runs;
    int send_pending = 0;                  // the exchanging thread's own
    std::string gone;  // why the connection ended, "" while it lives; guarded by mutex
  };

  int rank = 0;
  int size = 1;
  CommunicatorOptions options;
  std::shared_ptr<gloo::transport::Context> context;
  std::vector<Peer> peers;  // by rank
  SharedInbox inbox;        // null: no memory is shared

  std::mutex mutex;       // guards what follows, Peer::gone, and the buffers' lives
  absl::Status failure;   // the first; final
  int first_gone = -1;    // the first peer whose connection ended
  bool stopping = false;  // the mesh is being destroyed
  std::condition_variable stop;
  std::unique_ptr<PeerBuffer> watch;  // what the watcher waits on

  std::jthread watcher;  // last: it ends before what it uses

  int& Pending(int peer, Direction direction) {
    return direction == Direction::kRecv ? peers[peer].recv_pending : peers[peer].send_pending;
  }
  absl::Status Exchange(const Operation& operation, std::span<const Segment> sends,
                        std::span<const Segment> recvs);
  absl::Status Post(const Operation& operation, std::span<const Segment> sends,
                    std::span<const Segment> recvs);
  absl::Status PostPieces(const Operation& operation, int peer, Direction direction,
                          const Segment& segment);
  absl::Status ShareMemory(const std::vector<std::string>& inboxes);
  absl::StatusOr<bool> MoveShared(int peer);
  absl::Status WaitShared(const Operation& operation);
  absl::Status Wait(const Operation& operation, int peer, Direction direction);
  absl::Status AfterWake(const Operation& operation);
  bool Completed(int peer);
  std::string NotHeardFrom();
  absl::Status Fail(absl::Status status);
  absl::Status Gone(const Operation& operation, int peer, const std::string& why);
  absl::Status TimedOut(const Operation& operation);
  void WakeAllLocked();
  void Watch();
  bool PostWatch();
  void CloseConnections();
};

// Receives first, so that what arrives has a place; sends go to the next rank first, so that
// not everybody begins with rank 0.
absl::Status GlooMesh::Impl::Post(const Operation& operation, std::span<const Segment> sends,
                                  std::span<const Segment> recvs) {
  for (Peer& peer : peers) peer.recv_pending = peer.send_pending = 0;
  for (const Direction direction : {Direction::kRecv, Direction::kSend}) {
    for (int distance = 1; distance < size; ++distance) {
      const bool receives = direction == Direction::kRecv;
      const int peer = (receives ? rank - distance + size : rank + distance) % size;
      RETURN_IF_ERROR(PostPieces(operation, peer, direction, receives ? recvs[peer] : sends[peer]));
    }
  }
  return absl::OkStatus();
}

absl::Status GlooMesh::Impl::PostPieces(const Operation& operation, int peer, Direction direction,
                                        const Segment& segment) {
  if (SharedMemory* shared = peers[peer].shared.get()) {
    (direction == Direction::kRecv ? shared->recv : shared->send) = {
        .slot = SlotOf(operation, segment.bytes),
        .data = static_cast<std::byte*>(segment.data),
        .bytes = segment.bytes};
    return absl::OkStatus();
  }
  for (std::size_t begin = 0; begin < segment.bytes; begin += kPieceBytes) {
    const std::size_t bytes = std::min(kPieceBytes, segment.bytes - begin);
    {
      std::lock_guard lock(mutex);
      RETURN_IF_ERROR(failure);
    }
    ++Pending(peer, direction);
    try {
      peers[peer].buffer->Post(direction, peer, SlotOf(operation, bytes),
                               static_cast<const std::byte*>(segment.data) + begin, bytes);
    } catch (const std::exception& error) {
      return Gone(operation, peer, error.what());
    }
  }
  return absl::OkStatus();
}

// True: something moved.
absl::StatusOr<bool> GlooMesh::Impl::MoveShared(int peer) {
  SharedMemory& shared = *peers[peer].shared;
  const bool sent = shared.to.Write(shared.send);
  const absl::StatusOr<bool> received = shared.from.Read(shared.recv);
  if (!received.ok()) {
    return absl::Status(received.status().code(), "from rank " + options.NameOf(peer) + ": " +
                                                      std::string(received.status().message()));
  }
  return sent || *received;
}

// Moves what goes through shared memory until all of it has; what goes over connections moves on
// Gloo's threads meanwhile.
absl::Status GlooMesh::Impl::WaitShared(const Operation& operation) {
  if (!inbox) return absl::OkStatus();
  for (;;) {
    const std::uint32_t rings = inbox.bell().rings();
    bool moved = false;
    bool done = true;
    for (int peer = 0; peer < size; ++peer) {
      if (peers[peer].shared == nullptr) continue;
      ASSIGN_OR_RETURN(const bool some, MoveShared(peer));
      moved |= some;
      done &= peers[peer].shared->send.done() && peers[peer].shared->recv.done();
    }
    if (done) return absl::OkStatus();
    if (moved) continue;
    RETURN_IF_ERROR(AfterWake(operation));
    if (std::chrono::steady_clock::now() >= operation.deadline) return TimedOut(operation);
    inbox.bell().Wait(rings, operation.deadline);
  }
}

absl::Status GlooMesh::Impl::Wait(const Operation& operation, int peer, Direction direction) {
  int& pending = Pending(peer, direction);
  while (pending > 0) {
    switch (peers[peer].buffer->Wait(direction, operation.deadline)) {
      case Outcome::kDone:
        --pending;
        break;
      case Outcome::kFailed:
        return Gone(operation, peer, peers[peer].buffer->error());
      case Outcome::kTimedOut:
        return TimedOut(operation);
      case Outcome::kWoken:
        RETURN_IF_ERROR(AfterWake(operation));
        break;
    }
  }
  return absl::OkStatus();
}

// Somebody woke the wait: Abort, or the watcher. A peer that is gone matters only while this
// exchange still lacks something of it: one that had done its part and left is no failure.
absl::Status GlooMesh::Impl::AfterWake(const Operation& operation) {
  for (int peer = 0; peer < size; ++peer) {
    std::string why;
    {
      std::lock_guard lock(mutex);
      RETURN_IF_ERROR(failure);
      why = peers[peer].gone;
    }
    if (!why.empty() && !Completed(peer)) return Gone(operation, peer, why);
  }
  return absl::OkStatus();
}

// Whether this exchange is through with `peer`, without waiting. Ask only when "no" is a failure:
// Gloo then may close all connections of this rank.
bool GlooMesh::Impl::Completed(int peer) {
  if (SharedMemory* shared = peers[peer].shared.get()) {
    return MoveShared(peer).ok() && shared->send.done() && shared->recv.done();
  }
  for (const Direction direction : {Direction::kRecv, Direction::kSend}) {
    int& pending = Pending(peer, direction);
    // A wake-up that nobody has waited for yet hides what came after it.
    int wakes_left = 2;
    while (pending > 0) {
      const Outcome outcome = peers[peer].buffer->Wait(direction, SteadyTime{});
      if (outcome == Outcome::kDone) {
        --pending;
      } else if (outcome != Outcome::kWoken || wakes_left-- == 0) {
        return false;
      }
    }
  }
  return true;
}

std::string GlooMesh::Impl::NotHeardFrom() {
  std::string ranks;
  int count = 0;
  for (int peer = 0; peer < size; ++peer) {
    if (Completed(peer)) continue;
    ranks += (count++ == 0 ? "" : ", ") + options.NameOf(peer);
  }
  return (count == 1 ? "rank " : "ranks ") + ranks;
}

// Where several are gone the first one is to blame: the others left because of it.
absl::Status GlooMesh::Impl::Gone(const Operation& operation, int peer, const std::string& why) {
  std::string text = Where(options, operation) + ": ";
  {
    std::lock_guard lock(mutex);
    const int first = first_gone == -1 ? peer : first_gone;
    text += "rank " + options.NameOf(first) + " is gone (" +
            (first == peer ? why : peers[first].gone) + ")";
  }
  return absl::UnavailableError(text);
}

absl::Status GlooMesh::Impl::TimedOut(const Operation& operation) {
  return absl::DeadlineExceededError(Where(options, operation) + " did not end within " +
                                     std::to_string(operation.timeout.count()) +
                                     " ms: not heard from " + NotHeardFrom());
}

// Destroying the buffers makes Gloo forget where it would have read and written. What it gets
// from now on it can't place, so the watcher closes the connections soon after.
absl::Status GlooMesh::Impl::Fail(absl::Status status) {
  {
    std::lock_guard lock(mutex);
    if (failure.ok()) failure = std::move(status);
    for (Peer& peer : peers) peer.buffer.reset();
    if (watch) watch->Wake();
  }
  // Gloo touches memory only under its connection's lock: once that has been passed, what it did
  // last has happened before what the caller does next.
  for (int peer = 0; peer < size; ++peer) {
    if (peer != rank) context->getPair(peer)->createRecvBuffer(0, nullptr, 0).reset();
  }
  std::lock_guard lock(mutex);
  return failure;
}

void GlooMesh::Impl::WakeAllLocked() {
  for (const Peer& peer : peers) {
    if (peer.buffer) peer.buffer->Wake();
  }
  if (inbox) inbox.bell().Ring();
}

// Posts the watching receive on every living connection. A connection that refuses it has ended:
// that is noted, and waiters are woken. False: there is nothing left to watch.
bool GlooMesh::Impl::PostWatch() {
  bool any_alive = false;
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank || !peers[peer].gone.empty()) continue;
    try {
      watch->Post(Direction::kRecv, peer, kWatchSlot, nullptr, 0);
      any_alive = true;
    } catch (const std::exception& error) {
      std::lock_guard lock(mutex);
      peers[peer].gone = error.what();
      if (first_gone == -1) first_gone = peer;
      WakeAllLocked();
    }
  }
  return any_alive;
}

void GlooMesh::Impl::Watch() {
  for (;;) {
    {
      std::lock_guard lock(mutex);
      watch.reset();
      if (stopping || !failure.ok()) break;
      watch = std::make_unique<PeerBuffer>(*context);
    }
    if (!PostWatch()) break;
    // Ends when some connection did (the next round finds out which), or on Wake.
    watch->Wait(Direction::kRecv, SteadyTime::max());
  }
  std::unique_lock lock(mutex);
  watch.reset();
  if (stop.wait_for(lock, kCloseDelay, [this] { return stopping; })) return;
  if (failure.ok()) return;
  lock.unlock();
  CloseConnections();
}

void GlooMesh::Impl::CloseConnections() {
  for (int peer = 0; peer < size; ++peer) {
    if (peer != rank) context->getPair(peer)->close();
  }
}

GlooMesh::GlooMesh() : impl_(std::make_unique<Impl>()) {}

GlooMesh::~GlooMesh() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->stop.notify_all();
    if (impl_->watch) impl_->watch->Wake();
  }
  if (impl_->watcher.joinable()) impl_->watcher.join();
}

// Both ends have to have opened the other's inbox, so each tells each over their connection.
absl::Status GlooMesh::Impl::ShareMemory(const std::vector<std::string>& inboxes) {
  std::vector<std::uint8_t> opened(peers.size());
  std::vector<std::uint8_t> was_opened(peers.size());
  std::vector<Segment> sends(peers.size());
  std::vector<Segment> recvs(peers.size());
  std::vector<std::unique_ptr<SharedMemory>> shared(peers.size());
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank || !OnOneMachine(inbox.address(), inboxes[peer])) continue;
    sends[peer] = {&opened[peer], 1};
    recvs[peer] = {&was_opened[peer], 1};
    absl::StatusOr<SharedInbox> theirs = SharedInbox::Open(inboxes[peer], size);
    if (!theirs.ok()) {
      spdlog::info("rank {}: no shared memory with rank {}: {}", options.NameOf(rank),
                   options.NameOf(peer), theirs.status().ToString());
      continue;
    }
    opened[peer] = 1;
    shared[peer] = std::make_unique<SharedMemory>(SharedMemory{.inbox = *std::move(theirs)});
    SharedMemory& memory = *shared[peer];
    memory.to = memory.inbox.RingFrom(rank, memory.inbox.bell());
    memory.from = inbox.RingFrom(peer, memory.inbox.bell());
  }
  const Operation operation{.kind = "connect",
                            .name = "shared memory",
                            .code = kShareCode,
                            .deadline = std::chrono::steady_clock::now() + options.connect_timeout,
                            .timeout = options.connect_timeout};
  RETURN_IF_ERROR(Exchange(operation, sends, recvs));
  inbox.Close();
  for (int peer = 0; peer < size; ++peer) {
    if (opened[peer] != 0 && was_opened[peer] != 0) peers[peer].shared = std::move(shared[peer]);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GlooMesh>> GlooMesh::Connect(const CommunicatorOptions& options,
                                                            const ExchangeAddresses& exchange) {
  std::unique_ptr<GlooMesh> mesh(new GlooMesh());
  Impl& impl = *mesh->impl_;
  if (options.shared_memory && options.size > 1) {
    absl::StatusOr<SharedInbox> inbox = SharedInbox::Create(options.size);
    if (inbox.ok()) {
      impl.inbox = *std::move(inbox);
    } else {
      spdlog::info("rank {}: no shared memory with ranks of this machine: {}",
                   options.NameOf(options.rank), inbox.status().ToString());
    }
  }
  std::vector<std::string> inboxes;
  const auto exchange_both =
      [&](const std::string& own) -> absl::StatusOr<std::vector<std::string>> {
    ASSIGN_OR_RETURN(std::vector<std::string> published,
                     exchange(own + kInboxMark + impl.inbox.address()));
    for (std::string& text : published) {
      const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits(kInboxMark, 1));
      text = parts.front();
      inboxes.push_back(parts.size() > 1 ? parts.back() : "");
    }
    return published;
  };
  ASSIGN_OR_RETURN(impl.context, ConnectGlooMesh(options, exchange_both));
  impl.rank = options.rank;
  impl.size = options.size;
  impl.peers.resize(options.size);
  impl.options = options;
  for (int peer = 0; peer < options.size; ++peer) {
    if (peer != options.rank) {
      impl.peers[peer].buffer = std::make_unique<PeerBuffer>(*impl.context);
    }
  }
  if (options.size > 1) impl.watcher = std::jthread([&impl] { impl.Watch(); });
  if (impl.inbox) RETURN_IF_ERROR(impl.ShareMemory(inboxes));
  return mesh;
}

absl::Status GlooMesh::Exchange(const Operation& operation, std::span<const Segment> sends,
                                std::span<const Segment> recvs) {
  return impl_->Exchange(operation, sends, recvs);
}

absl::Status GlooMesh::Impl::Exchange(const Operation& operation, std::span<const Segment> sends,
                                      std::span<const Segment> recvs) {
  PACELINE_CHECK(std::ssize(sends) == size && std::ssize(recvs) == size);
  {
    std::lock_guard lock(mutex);
    RETURN_IF_ERROR(failure);
  }
  absl::Status status = Post(operation, sends, recvs);
  if (status.ok()) status = WaitShared(operation);
  for (const Direction direction : {Direction::kRecv, Direction::kSend}) {
    for (int distance = 1; distance < size && status.ok(); ++distance) {
      status = Wait(operation, (rank - distance + size) % size, direction);
    }
  }
  if (status.ok()) return status;
  return Fail(std::move(status));
}

absl::StatusOr<std::unique_ptr<Mesh>> GlooMesh::Split(const std::vector<int>&,
                                                      const CommunicatorOptions& options,
                                                      const ExchangeAddresses& exchange) {
  if (options.size > 1) return Connect(options, exchange);
  RETURN_IF_ERROR(exchange("").status());  // the others wait for it
  return nullptr;
}

void GlooMesh::Abort(const std::string& reason) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->failure.ok()) impl_->failure = absl::AbortedError(reason);
  impl_->WakeAllLocked();
  if (impl_->watch) impl_->watch->Wake();
}

}  // namespace paceline
