#include "worker/collectives/mpi/mpi_mesh.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace paceline {
namespace {

// MPI counts in ints.
constexpr std::size_t kPieceBytes = std::size_t{1} << 30;

struct Group {
  MPI_Comm communicator = MPI_COMM_NULL;
  int tag_max = 32767;  // what MPI promises at least
};

class MpiMesh final : public Mesh {
 public:
  MpiMesh(MpiThread& thread, const CommunicatorOptions& options, const Group& group)
      : thread_(thread), options_(options), tag_max_(group.tag_max) {
    transfers_.communicator = group.communicator;
  }

  bool abortable() const override { return false; }

  absl::Status Exchange(const Operation& operation, std::span<const Segment> sends,
                        std::span<const Segment> recvs) override {
    PACELINE_CHECK(std::ssize(sends) == options_.size && std::ssize(recvs) == options_.size);
    RETURN_IF_ERROR(failure_);
    transfers_.tag = TagOf(operation);
    transfers_.where = [this, &operation] { return Where(options_, operation); };
    transfers_.transfers.clear();
    // Towards the next rank first, so that not everybody begins with rank 0.
    for (int distance = 1; distance < options_.size; ++distance) {
      const int from = (options_.rank - distance + options_.size) % options_.size;
      const int to = (options_.rank + distance) % options_.size;
      Add(/*receives=*/true, from, recvs[static_cast<std::size_t>(from)]);
      Add(/*receives=*/false, to, sends[static_cast<std::size_t>(to)]);
    }
    if (transfers_.transfers.empty()) return absl::OkStatus();
    const absl::Status status = thread_.Run(transfers_, operation.deadline);
    if (!status.ok()) failure_ = Explain(operation, status);
    return failure_;
  }

  absl::StatusOr<std::unique_ptr<Mesh>> Split(const std::vector<int>& ranks,
                                              const CommunicatorOptions& options,
                                              const ExchangeAddresses&) override {
    return SplitMpiMesh(thread_, transfers_.communicator, ranks.front(), options);
  }

  void Abort(const std::string& reason) override { thread_.Halt(reason); }

 private:
  // What both ends believe the operation to be: a rank that runs another one never matches, and
  // the time-out names it. The operations of one communicator and tag match in their order.
  int TagOf(const Operation& operation) const {
    const std::uint32_t sequences = static_cast<std::uint32_t>(tag_max_) / kCodes;
    return static_cast<int>((operation.sequence % sequences) * kCodes + operation.code);
  }

  void Add(bool receives, int peer, const Segment& segment) {
    for (std::size_t begin = 0; begin < segment.bytes; begin += kPieceBytes) {
      transfers_.transfers.push_back(
          {.receives = receives,
           .peer = peer,
           .data = static_cast<std::byte*>(segment.data) + begin,
           .bytes = static_cast<int>(std::min(kPieceBytes, segment.bytes - begin))});
    }
  }

  absl::Status Explain(const Operation& operation, const absl::Status& status) const {
    if (absl::IsAborted(status)) return status;
    if (!absl::IsDeadlineExceeded(status)) return Annotate(status, Where(options_, operation));
    return absl::DeadlineExceededError(Where(options_, operation) + " did not end within " +
                                       std::to_string(operation.timeout.count()) +
                                       " ms: not heard from " + NotHeardFrom());
  }

  std::string NotHeardFrom() const {
    std::string ranks;
    int count = 0;
    for (int peer = 0; peer < options_.size; ++peer) {
      const bool missing =
          std::any_of(transfers_.transfers.begin(), transfers_.transfers.end(),
                      [&](const auto& one) { return one.peer == peer && !one.done; });
      if (missing) ranks += (count++ == 0 ? "" : ", ") + options_.NameOf(peer);
    }
    return (count == 1 ? "rank " : "ranks ") + ranks;
  }

  MpiThread& thread_;
  const CommunicatorOptions options_;
  const int tag_max_;
  MpiTransfers transfers_;
  absl::Status failure_;  // the first; final
};

absl::Status SplitNow(MPI_Comm parent, int colour, int rank, bool alone, Group& made) {
  RETURN_IF_ERROR(
      MpiStatus(MPI_Comm_split(parent, alone ? MPI_UNDEFINED : colour, rank, &made.communicator),
                "MPI_Comm_split"));
  void* value = nullptr;
  int found = 0;
  RETURN_IF_ERROR(MpiStatus(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &value, &found),
                            "MPI_Comm_get_attr"));
  if (found != 0) made.tag_max = *static_cast<int*>(value);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Mesh>> SplitMpiMesh(MpiThread& thread, MPI_Comm parent, int colour,
                                                   const CommunicatorOptions& options) {
  const auto made = std::make_shared<Group>();  // the call may outlast this function
  const absl::Status status =
      thread.Call([parent, colour, rank = options.rank, alone = options.size == 1,
                   made] { return SplitNow(parent, colour, rank, alone, *made); },
                  std::chrono::steady_clock::now() + options.connect_timeout);
  if (absl::IsDeadlineExceeded(status)) {
    return absl::DeadlineExceededError(
        "rank " + options.NameOf(options.rank) + ": making a group of " +
        std::to_string(options.size) + " ranks over MPI did not end within " +
        std::to_string(options.connect_timeout.count()) + " ms: a rank did not come");
  }
  RETURN_IF_ERROR(status);
  if (options.size == 1) return nullptr;
  return std::make_unique<MpiMesh>(thread, options, *made);
}

}  // namespace paceline
