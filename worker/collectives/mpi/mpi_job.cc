// libpaceline_mpi.so: MpiJob over Open MPI.
#include "worker/collectives/mpi/mpi_job.h"

#include <unistd.h>

#include <utility>

#include "worker/collectives/mpi/mpi_entry.h"
#include "worker/collectives/mpi/mpi_mesh.h"
#include "worker/collectives/mpi/mpi_thread.h"

namespace paceline {
namespace {

// How long MPI_Abort may take, which needs a thread that is not stuck in MPI. A process that ends
// without MPI_Finalize ends the job as well, when mpirun sees it.
constexpr std::chrono::milliseconds kAbortPatience{2000};

struct Places {
  int rank = 0;
  int size = 1;
  std::vector<int> hosts;
};

absl::Status FindPlaces(Places& places) {
  MPI_Comm_rank(MPI_COMM_WORLD, &places.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &places.size);
  MPI_Comm host = MPI_COMM_NULL;
  RETURN_IF_ERROR(MpiStatus(
      MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, places.rank, MPI_INFO_NULL, &host),
      "MPI_Comm_split_type"));
  int lowest = places.rank;
  RETURN_IF_ERROR(MpiStatus(MPI_Bcast(&lowest, 1, MPI_INT, 0, host), "MPI_Bcast"));
  RETURN_IF_ERROR(MpiStatus(MPI_Comm_free(&host), "MPI_Comm_free"));
  places.hosts.resize(static_cast<std::size_t>(places.size));
  return MpiStatus(
      MPI_Allgather(&lowest, 1, MPI_INT, places.hosts.data(), 1, MPI_INT, MPI_COMM_WORLD),
      "MPI_Allgather");
}

absl::Status GatherTexts(const std::string& own, int size, std::vector<std::string>& texts) {
  const int length = static_cast<int>(own.size());
  std::vector<int> lengths(static_cast<std::size_t>(size));
  RETURN_IF_ERROR(
      MpiStatus(MPI_Allgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, MPI_COMM_WORLD),
                "MPI_Allgather"));
  std::vector<int> begins;
  int total = 0;
  for (const int one : lengths) {
    begins.push_back(total);
    total += one;
  }
  std::string all(static_cast<std::size_t>(total), '\0');
  RETURN_IF_ERROR(MpiStatus(MPI_Allgatherv(own.data(), length, MPI_CHAR, all.data(), lengths.data(),
                                           begins.data(), MPI_CHAR, MPI_COMM_WORLD),
                            "MPI_Allgatherv"));
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    texts.push_back(
        all.substr(static_cast<std::size_t>(begins[i]), static_cast<std::size_t>(lengths[i])));
  }
  return absl::OkStatus();
}

class Job final : public MpiJob {
 public:
  Job(std::unique_ptr<MpiThread> thread, Places places)
      : thread_(std::move(thread)), places_(std::move(places)) {}

  int rank() const override { return places_.rank; }
  int size() const override { return places_.size; }
  const std::vector<int>& hosts() const override { return places_.hosts; }

  absl::StatusOr<std::vector<std::string>> AllGather(const std::string& own) override {
    std::vector<std::string> texts;
    RETURN_IF_ERROR(
        thread_->Call([&] { return GatherTexts(own, size(), texts); }, SteadyTime::max()));
    return texts;
  }

  absl::StatusOr<std::unique_ptr<Mesh>> Connect(const CommunicatorOptions& options) override {
    if (options.size != size()) {
      return absl::InvalidArgumentError("the plan has " + std::to_string(options.size) +
                                        " ranks, the MPI job has " + std::to_string(size()) +
                                        ": start as many as nodes x slots_per_node");
    }
    return SplitMpiMesh(*thread_, MPI_COMM_WORLD, /*colour=*/0, options);
  }

  absl::Status Finalize() override {
    const auto finalize = [this] {
      thread_->Halt("MPI has been finalised");
      return MpiStatus(MPI_Finalize(), "MPI_Finalize");
    };
    return thread_->Call(finalize, SteadyTime::max());
  }

  [[noreturn]] void Abort(int exit_code) override {
    thread_->AbortJob(exit_code, kAbortPatience);
    ::_exit(exit_code);
  }

 private:
  const std::unique_ptr<MpiThread> thread_;
  const Places places_;
};

absl::StatusOr<std::unique_ptr<MpiJob>> Begin() {
  ASSIGN_OR_RETURN(std::unique_ptr<MpiThread> thread, MpiThread::Start());
  Places places;
  RETURN_IF_ERROR(thread->Call([&] { return FindPlaces(places); }, SteadyTime::max()));
  return std::make_unique<Job>(std::move(thread), std::move(places));
}

}  // namespace
}  // namespace paceline

// See kMpiEntry.
extern "C" __attribute__((visibility("default"))) void PacelineMpiBegin(
    const char* version, absl::StatusOr<std::unique_ptr<paceline::MpiJob>>* job) {
  if (std::string(version) != PACELINE_VERSION) {
    *job = absl::FailedPreconditionError("libpaceline_mpi.so is of release " PACELINE_VERSION
                                         ", the worker of " +
                                         std::string(version) + ": install both of one release");
    return;
  }
  *job = paceline::Begin();
}
