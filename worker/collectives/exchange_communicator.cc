#include "worker/collectives/exchange_communicator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "worker/collectives/progress_counters.h"
#include "worker/collectives/rank_order_sum.h"

namespace paceline {
namespace {

using Segment = Mesh::Segment;

// Up to here an all-reduce is one round in which everybody gets everything, instead of two.
constexpr std::size_t kOneRoundBytesMax = 8192;
constexpr std::size_t kAlignment = 64;

// Tells operations and their rounds apart on the wire.
enum Code : std::uint8_t {
  kReduceScatter = 1,
  kAllGather,
  kAllReduceOneRound,
  kAllReduceScatter,
  kAllReduceGather,
  kBroadcast,
  kAllToAll,
  kPointToPoint,
  kBarrier,
};
static_assert(kBarrier < Mesh::kCodes);

// Part `index` of `count` elements split into `parts`, as evenly as it goes.
struct Part {
  std::size_t begin;
  std::size_t count;
};
Part PartOf(std::size_t count, std::size_t parts, std::size_t index) {
  const std::size_t base = count / parts;
  const std::size_t longer = count % parts;
  return {index * base + std::min(index, longer), base + (index < longer ? 1 : 0)};
}

std::byte* At(const void* base, std::size_t bytes) {
  return static_cast<std::byte*>(const_cast<void*>(base)) + bytes;
}

void CopyUnlessSame(void* to, const void* from, std::size_t bytes) {
  if (to != from && bytes > 0) std::memmove(to, from, bytes);
}

class ExchangeCommunicator final : public Communicator {
 public:
  ExchangeCommunicator(const CommunicatorOptions& options, std::unique_ptr<Mesh> mesh)
      : options_(options),
        rank_(options.rank),
        size_(options.size),
        timeout_(options.operation_timeout),
        mesh_(std::move(mesh)),
        sends_(options.size),
        recvs_(options.size),
        addends_(options.size),
        sent_to_(options.size),
        received_from_(options.size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool abortable() const override { return mesh_->abortable(); }

  void ReduceScatterSum(Stream& stream, const char* name, void* send, void* recv,
                        std::size_t recv_count, DataType type) override {
    stream.Enqueue([=, this] {
      return Run("reduce-scatter", name, [&](Operation& operation) {
        return ReduceScatter(operation, send, recv, recv_count, type);
      });
    });
  }

  void AllGather(Stream& stream, const char* name, const void* send, void* recv,
                 std::size_t send_count, DataType type) override {
    stream.Enqueue([=, this] {
      return Run("all-gather", name, [&](Operation& operation) {
        return Gather(operation, kAllGather, send, recv, send_count * SizeOf(type));
      });
    });
  }

  void AllReduceSum(Stream& stream, const char* name, void* buffer, std::size_t count,
                    DataType type) override {
    stream.Enqueue([=, this] {
      return Run("all-reduce", name, [&](Operation& operation) {
        return count * SizeOf(type) <= kOneRoundBytesMax
                   ? AllReduceOneRound(operation, buffer, count, type)
                   : AllReduce(operation, buffer, count, type);
      });
    });
  }

  void Broadcast(Stream& stream, const char* name, void* buffer, std::size_t count, DataType type,
                 int root) override {
    stream.Enqueue([=, this] {
      return Run("broadcast", name, [&](Operation& operation) -> absl::Status {
        RETURN_IF_ERROR(CheckRank("root", root));
        const Segment whole{buffer, count * SizeOf(type)};
        if (rank_ == root) {
          std::fill(sends_.begin(), sends_.end(), whole);
        } else {
          recvs_[root] = whole;
        }
        return Exchange(operation, kBroadcast);
      });
    });
  }

  void AllToAll(Stream& stream, const char* name, const void* send, const std::size_t* send_counts,
                const std::size_t* send_offsets, void* recv, const std::size_t* recv_counts,
                const std::size_t* recv_offsets, DataType type) override {
    stream.Enqueue([=, this] {
      return Run("all-to-all", name, [&](Operation& operation) {
        const std::size_t width = SizeOf(type);
        for (int peer = 0; peer < size_; ++peer) {
          sends_[peer] = {At(send, send_offsets[peer] * width), send_counts[peer] * width};
          recvs_[peer] = {At(recv, recv_offsets[peer] * width), recv_counts[peer] * width};
        }
        CopyUnlessSame(recvs_[rank_].data, sends_[rank_].data, sends_[rank_].bytes);
        return Exchange(operation, kAllToAll);
      });
    });
  }

  void Send(Stream& stream, const char* name, const void* buffer, std::size_t count, DataType type,
            int peer) override {
    stream.Enqueue([=, this] {
      return Run("send", name, [&](Operation& operation) -> absl::Status {
        RETURN_IF_ERROR(CheckPeer(peer));
        sends_[peer] = {At(buffer, 0), count * SizeOf(type)};
        operation.sequence = sent_to_[peer]++;
        return Exchange(operation, kPointToPoint);
      });
    });
  }

  void Recv(Stream& stream, const char* name, void* buffer, std::size_t count, DataType type,
            int peer) override {
    stream.Enqueue([=, this] {
      return Run("receive", name, [&](Operation& operation) -> absl::Status {
        RETURN_IF_ERROR(CheckPeer(peer));
        recvs_[peer] = {buffer, count * SizeOf(type)};
        operation.sequence = received_from_[peer]++;
        return Exchange(operation, kPointToPoint);
      });
    });
  }

  void Barrier(Stream& stream, const char* name) override {
    stream.Enqueue([=, this] {
      return Run("barrier", name, [&](Operation& operation) {
        // One byte each way: from a peer that got here. Peers' bytes may arrive on several threads.
        std::byte* bytes = Staging(1 + static_cast<std::size_t>(size_));
        bytes[0] = std::byte{0};
        std::fill(sends_.begin(), sends_.end(), Segment{bytes, 1});
        for (int peer = 0; peer < size_; ++peer) recvs_[peer] = {bytes + 1 + peer, 1};
        return Exchange(operation, kBarrier);
      });
    });
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(const std::vector<int>& ranks) override {
    const auto own = std::find(ranks.begin(), ranks.end(), rank_);
    if (own == ranks.end()) {
      return absl::InvalidArgumentError("rank " + options_.NameOf(rank_) +
                                        " is not in the group it asks for");
    }
    CommunicatorOptions options = options_;
    options.rank = static_cast<int>(own - ranks.begin());
    options.size = static_cast<int>(ranks.size());
    options.names.clear();
    for (const int rank : ranks) options.names.push_back(std::stoi(options_.NameOf(rank)));
    const auto exchange = [&](const std::string& address) {
      return ExchangeInGroup(address, ranks);
    };
    ASSIGN_OR_RETURN(std::unique_ptr<Mesh> mesh, mesh_->Split(ranks, options, exchange));
    return mesh == nullptr ? MakeSelfCommunicator()
                           : MakeExchangeCommunicator(options, std::move(mesh));
  }

  void Abort(const std::string& reason) override { mesh_->Abort(reason); }
  CommunicatorProgress progress() const override { return counters_.Read(); }

 private:
  using Operation = Mesh::Operation;

  template <typename Body>
  absl::Status Run(const char* kind, const char* name, Body body) {
    counters_.Enter(name);
    Operation operation{.kind = kind,
                        .name = name,
                        .deadline = std::chrono::steady_clock::now() + timeout_,
                        .timeout = timeout_};
    absl::Status status = body(operation);
    counters_.Leave();
    return status;
  }

  // Runs what stands in sends_ and recvs_, and clears them.
  absl::Status Exchange(Operation& operation, Code code) {
    operation.code = code;
    // Point-to-point operations are counted by peer: the others know nothing of them.
    if (code != kPointToPoint) operation.sequence = sequence_++;
    absl::Status status = mesh_->Exchange(operation, sends_, recvs_);
    std::fill(sends_.begin(), sends_.end(), Segment{});
    std::fill(recvs_.begin(), recvs_.end(), Segment{});
    return status;
  }

  absl::Status ReduceScatter(Operation& operation, void* send, void* recv, std::size_t count,
                             DataType type) {
    const std::size_t bytes = count * SizeOf(type);
    std::byte* staging = Staging(bytes * size_);
    for (int peer = 0; peer < size_; ++peer) {
      sends_[peer] = {At(send, peer * bytes), bytes};
      recvs_[peer] = {staging + peer * bytes, bytes};
      addends_[peer] = peer == rank_ ? sends_[peer].data : recvs_[peer].data;
    }
    RETURN_IF_ERROR(Exchange(operation, kReduceScatter));
    SumInRankOrder(addends_, recv, count, type);
    return absl::OkStatus();
  }

  absl::Status Gather(Operation& operation, Code code, const void* send, void* recv,
                      std::size_t bytes) {
    for (int peer = 0; peer < size_; ++peer) {
      sends_[peer] = {At(send, 0), bytes};
      recvs_[peer] = {At(recv, peer * bytes), bytes};
    }
    CopyUnlessSame(recvs_[rank_].data, send, bytes);
    return Exchange(operation, code);
  }

  absl::Status AllReduceOneRound(Operation& operation, void* buffer, std::size_t count,
                                 DataType type) {
    const std::size_t bytes = count * SizeOf(type);
    std::byte* staging = Staging(bytes * size_);
    for (int peer = 0; peer < size_; ++peer) addends_[peer] = staging + peer * bytes;
    RETURN_IF_ERROR(Gather(operation, kAllReduceOneRound, buffer, staging, bytes));
    SumInRankOrder(addends_, buffer, count, type);
    return absl::OkStatus();
  }

  // Each rank sums its part in place, then everybody gets everybody's part.
  absl::Status AllReduce(Operation& operation, void* buffer, std::size_t count, DataType type) {
    const std::size_t width = SizeOf(type);
    const Part own = PartOf(count, size_, rank_);
    std::byte* staging = Staging(own.count * width * size_);
    for (int peer = 0; peer < size_; ++peer) {
      const Part part = PartOf(count, size_, peer);
      sends_[peer] = {At(buffer, part.begin * width), part.count * width};
      recvs_[peer] = {staging + peer * own.count * width, own.count * width};
      addends_[peer] = peer == rank_ ? sends_[peer].data : recvs_[peer].data;
    }
    RETURN_IF_ERROR(Exchange(operation, kAllReduceScatter));
    std::byte* own_part = At(buffer, own.begin * width);
    SumInRankOrder(addends_, own_part, own.count, type);
    for (int peer = 0; peer < size_; ++peer) {
      const Part part = PartOf(count, size_, peer);
      sends_[peer] = {own_part, own.count * width};
      recvs_[peer] = {At(buffer, part.begin * width), part.count * width};
    }
    return Exchange(operation, kAllReduceGather);
  }

  // What `ranks` said, when every rank of this communicator has said something.
  absl::StatusOr<std::vector<std::string>> ExchangeInGroup(const std::string& own,
                                                           const std::vector<int>& ranks) {
    Stream stream(Stream::Mode::kInline, "group");
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(size_));
    const auto own_size = static_cast<std::int64_t>(own.size());
    AllGather(stream, "group address sizes", &own_size, sizes.data(), 1, DataType::kInt64);
    RETURN_IF_ERROR(stream.Synchronize());
    const auto longest = static_cast<std::size_t>(*std::max_element(sizes.begin(), sizes.end()));
    std::string padded = own;
    padded.resize(longest);
    std::string all(longest * static_cast<std::size_t>(size_), '\0');
    AllGather(stream, "group addresses", padded.data(), all.data(), longest, DataType::kUint8);
    RETURN_IF_ERROR(stream.Synchronize());
    std::vector<std::string> addresses;
    for (const int rank : ranks) {
      const auto at = static_cast<std::size_t>(rank);
      addresses.push_back(all.substr(at * longest, static_cast<std::size_t>(sizes[at])));
    }
    return addresses;
  }

  // Memory of this communicator for what arrives, kept and grown as operations need it.
  std::byte* Staging(std::size_t bytes) {
    if (bytes > staging_bytes_) {
      staging_bytes_ = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      staging_.reset();
      staging_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, staging_bytes_)));
      if (staging_ == nullptr) throw std::bad_alloc();
    }
    return staging_.get();
  }

  absl::Status CheckRank(const char* what, int value) const {
    if (value >= 0 && value < size_) return absl::OkStatus();
    return absl::InvalidArgumentError(std::string(what) + " is " + std::to_string(value) +
                                      ": want a rank below " + std::to_string(size_));
  }

  absl::Status CheckPeer(int peer) const {
    RETURN_IF_ERROR(CheckRank("peer", peer));
    if (peer != rank_) return absl::OkStatus();
    return absl::InvalidArgumentError("peer is " + std::to_string(peer) + ", this rank itself");
  }

  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  const CommunicatorOptions options_;
  const int rank_;
  const int size_;
  const std::chrono::milliseconds timeout_;
  ProgressCounters counters_;
  std::unique_ptr<std::byte[], Free> staging_;
  std::size_t staging_bytes_ = 0;
  std::unique_ptr<Mesh> mesh_;
  // Of the operation that runs; here so that operations allocate nothing.
  std::vector<Segment> sends_;
  std::vector<Segment> recvs_;
  std::vector<const void*> addends_;
  std::uint32_t sequence_ = 0;
  std::vector<std::uint32_t> sent_to_;
  std::vector<std::uint32_t> received_from_;
};

}  // namespace

std::unique_ptr<Communicator> MakeExchangeCommunicator(const CommunicatorOptions& options,
                                                       std::unique_ptr<Mesh> mesh) {
  return std::make_unique<ExchangeCommunicator>(options, std::move(mesh));
}

}  // namespace paceline
