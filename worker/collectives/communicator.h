// Collectives between the ranks of one group, behind one interface for every transport
// (Gloo on CPUs, NCCL on GPUs, MPI).
//
// An operation is enqueued on a Stream and completes with it: its status is the stream's.
// Every operation is bounded in time (kDeadlineExceeded), has a name for the progress
// counters, and, where abortable(), returns within 100 ms once Abort was called from any
// thread (kAborted). All ranks of a group call the same operations in the same order.
// Invariant: reductions add in rank order, so that results depend on ranks alone, never on
// timing; all ranks get the same bits.
// Threading: one stream at a time; Abort and progress() from any thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/kernels/stream.h"

namespace paceline {

enum class DataType { kFloat32, kFloat64, kInt32, kInt64, kUint8 };
std::size_t SizeOf(DataType type);

// What a rank has entered and left: enough to name who is stuck where.
struct CommunicatorProgress {
  const char* operation = "";  // the one it is in, or was last in; a string literal
  std::uint64_t entered = 0;
  std::uint64_t left = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual bool abortable() const = 0;

  // `name` is a string literal that says what the operation is for ("gradients"). `count`s are
  // in elements. Buffers stay valid until the stream has passed the operation.

  // recv[i] = sum over ranks of their send[rank() * recv_count + i], i in [0, recv_count).
  // send: size() * recv_count elements; it may be overwritten. recv may be send's own shard.
  virtual void ReduceScatterSum(Stream& stream, const char* name, void* send, void* recv,
                                std::size_t recv_count, DataType type) = 0;
  // recv[r * send_count + i] = rank r's send[i]. send may be recv's own shard.
  virtual void AllGather(Stream& stream, const char* name, const void* send, void* recv,
                         std::size_t send_count, DataType type) = 0;
  // buffer[i] = sum over ranks of their buffer[i].
  virtual void AllReduceSum(Stream& stream, const char* name, void* buffer, std::size_t count,
                            DataType type) = 0;
  virtual void Broadcast(Stream& stream, const char* name, void* buffer, std::size_t count,
                         DataType type, int root) = 0;
  // Rank r gets send[send_offsets[r] .. + send_counts[r]) and its part lands at
  // recv[recv_offsets[r] ..). Counts may be zero. The arrays (size() entries each) are read
  // when the operation runs.
  virtual void AllToAll(Stream& stream, const char* name, const void* send,
                        const std::size_t* send_counts, const std::size_t* send_offsets, void* recv,
                        const std::size_t* recv_counts, const std::size_t* recv_offsets,
                        DataType type) = 0;
  virtual void Send(Stream& stream, const char* name, const void* buffer, std::size_t count,
                    DataType type, int peer) = 0;
  virtual void Recv(Stream& stream, const char* name, void* buffer, std::size_t count,
                    DataType type, int peer) = 0;
  virtual void Barrier(Stream& stream, const char* name) = 0;

  // A communicator of its own for `ranks` of this one, ascending, this rank among them.
  // Collective and blocking: every rank of this communicator calls it, with the group it belongs
  // to, and groups are disjoint. Error texts of the new one name ranks as this one does.
  // Errors as those of connecting.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(const std::vector<int>& ranks) = 0;

  // Wakes every waiter of this rank with kAborted: `reason`; later operations fail likewise.
  virtual void Abort(const std::string& reason) = 0;
  virtual CommunicatorProgress progress() const = 0;
};

// How ranks find each other: a rank publishes its address, and gets everybody's, in rank
// order, once all have published. Blocking; kAborted or kDeadlineExceeded when that fails.
using ExchangeAddresses =
    std::function<absl::StatusOr<std::vector<std::string>>(const std::string& own_address)>;

struct CommunicatorOptions {
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds operation_timeout{120'000};
  std::chrono::milliseconds connect_timeout{30'000};
  std::string interface_address = "127.0.0.1";  // what the data plane binds to
  bool shared_memory = true;                    // between ranks of one machine, over Gloo
  std::vector<int> names = {};                  // what error texts call the ranks; empty: 0, 1, ...

  std::string NameOf(int of_rank) const {
    return std::to_string(names.empty() ? of_rank : names[static_cast<std::size_t>(of_rank)]);
  }
};

// A communicator of one rank: every operation is a local copy. Needs no transport.
std::unique_ptr<Communicator> MakeSelfCommunicator();

}  // namespace paceline
