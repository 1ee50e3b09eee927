// The programs of a run on this machine: one coordinator and its agents, as children.
//
//   ASSIGN_OR_RETURN(auto cluster, LocalCluster::Start(options));     // the coordinator answers
//   RETURN_IF_ERROR(cluster->StartNodes());
//   ... poll(cluster->event_fd()) ... cluster->TakeEnded() ...
//   cluster->Stop(5s);
//
// Invariant: no child outlives the LocalCluster, nor this process, however it ends (each child
// has it as the parent whose death kills it).
// Threading: one thread; event_fd() may be polled from any.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/process.h"
#include "launch/local/coordinator_file.h"

namespace paceline {

// Names of children; the others are the nodes': "node-0".
inline constexpr char kCoordinator[] = "coordinator";
inline constexpr char kMpirun[] = "mpirun";

struct LocalClusterOptions {
  std::string program_folder;  // holds paceline-coordinator and paceline-agent
  std::string run_id;
  std::string state_folder;      // the coordinator's
  std::string coordinator_json;  // the coordinator writes it there once it answers
  std::string token_path;
  std::string log_folder;  // coordinator.log, node-0.log, ..., mpirun.log
  std::int64_t nodes = 1;  // spares among them
  std::int64_t slots_per_node = 1;
  // What starts the ranks in place of agents that are children here: mpirun and its arguments. Each
  // node's agent is then started by its first rank. Empty: agents.
  std::vector<std::string> job;
};

class LocalCluster {
 public:
  // A child that ended.
  struct Ended {
    std::string name;
    ProcessExit exit;
    std::string log_path;
    std::vector<std::string> stderr_tail;
  };

  // Starts the coordinator and waits until it answers. The error is the coordinator's own last
  // word where it ended before; kDeadlineExceeded: it neither answered nor ended in `timeout`.
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(LocalClusterOptions options,
                                                             std::chrono::milliseconds timeout);
  ~LocalCluster();
  LocalCluster(const LocalCluster&) = delete;
  LocalCluster& operator=(const LocalCluster&) = delete;

  // The agents, or the job that brings its own.
  absl::Status StartNodes();

  // A coordinator that ended is started again on its state, as a standby: it leads the next epoch
  // as soon as it can, unless another that stood by was faster, and then waits for that one's end.
  // Either is what FindNextCoordinator finds; agents find it by themselves.
  absl::Status RestartCoordinator();
  // Whether coordinator.json tells of a later epoch than coordinator() did; takes it up.
  bool FindNextCoordinator();
  // An agent that ended is started again, as a new incarnation of the node `name`.
  absl::Status RestartNode(const std::string& name);

  // The one that leads, as far as is known: the child, or one that took over.
  const CoordinatorFile& coordinator() const;
  // Children whose end has not been told yet.
  std::vector<Ended> TakeEnded();
  // Readable whenever a child has ended since the last TakeEnded.
  int event_fd() const;

  // Waits until every agent, or the job, has ended; false: some still live after `timeout`.
  bool WaitForNodes(std::chrono::milliseconds timeout);
  // Asks every child to end, and kills what lives after `timeout`.
  void Stop(std::chrono::milliseconds timeout);
  void Kill();

 private:
  struct Impl;
  explicit LocalCluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
