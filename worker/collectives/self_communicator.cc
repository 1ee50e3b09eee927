// The communicator of one rank.
#include <cstring>
#include <mutex>

#include "worker/collectives/communicator.h"
#include "worker/collectives/progress_counters.h"

namespace paceline {
namespace {

class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  bool abortable() const override { return true; }

  void ReduceScatterSum(Stream& stream, const char* name, void* send, void* recv,
                        std::size_t recv_count, DataType type) override {
    Copy(stream, name, send, recv, recv_count * SizeOf(type));
  }

  void AllGather(Stream& stream, const char* name, const void* send, void* recv,
                 std::size_t send_count, DataType type) override {
    Copy(stream, name, send, recv, send_count * SizeOf(type));
  }

  void AllReduceSum(Stream& stream, const char* name, void* buffer, std::size_t count,
                    DataType type) override {
    Copy(stream, name, buffer, buffer, count * SizeOf(type));
  }

  void Broadcast(Stream& stream, const char* name, void* buffer, std::size_t count, DataType type,
                 int) override {
    Copy(stream, name, buffer, buffer, count * SizeOf(type));
  }

  void AllToAll(Stream& stream, const char* name, const void* send, const std::size_t* send_counts,
                const std::size_t* send_offsets, void* recv, const std::size_t*,
                const std::size_t* recv_offsets, DataType type) override {
    stream.Enqueue([=, this] {
      const std::size_t width = SizeOf(type);
      return CopyNow(name, static_cast<const std::byte*>(send) + send_offsets[0] * width,
                     static_cast<std::byte*>(recv) + recv_offsets[0] * width,
                     send_counts[0] * width);
    });
  }

  void Send(Stream& stream, const char* name, const void*, std::size_t, DataType,
            int peer) override {
    RefusePeer(stream, name, peer);
  }

  void Recv(Stream& stream, const char* name, void*, std::size_t, DataType, int peer) override {
    RefusePeer(stream, name, peer);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(const std::vector<int>&) override {
    return MakeSelfCommunicator();
  }

  void Barrier(Stream& stream, const char* name) override {
    Copy(stream, name, nullptr, nullptr, 0);
  }

  void Abort(const std::string& reason) override {
    std::lock_guard lock(mutex_);
    if (aborted_.ok()) aborted_ = absl::AbortedError(reason);
  }

  CommunicatorProgress progress() const override { return counters_.Read(); }

 private:
  void Copy(Stream& stream, const char* name, const void* from, void* to, std::size_t bytes) {
    stream.Enqueue([=, this] { return CopyNow(name, from, to, bytes); });
  }

  absl::Status CopyNow(const char* name, const void* from, void* to, std::size_t bytes) {
    {
      std::lock_guard lock(mutex_);
      RETURN_IF_ERROR(aborted_);
    }
    counters_.Enter(name);
    if (from != to && bytes > 0) std::memmove(to, from, bytes);
    counters_.Leave();
    return absl::OkStatus();
  }

  void RefusePeer(Stream& stream, const char* name, int peer) {
    stream.Enqueue([name, peer]() -> absl::Status {
      return absl::InvalidArgumentError("\"" + std::string(name) + "\": peer is " +
                                        std::to_string(peer) +
                                        ", but a group of one rank has no peers");
    });
  }

  ProgressCounters counters_;
  std::mutex mutex_;  // guards aborted_
  absl::Status aborted_;
};

}  // namespace

std::unique_ptr<Communicator> MakeSelfCommunicator() {
  return std::make_unique<SelfCommunicator>();
}

}  // namespace paceline
