// The groups in which one rank communicates, for its place in the layout: all ranks, those that
// share its stage's work, its experts, and its neighbours in the pipeline.
// Invariant: a communicator is used by one stream alone, so that no group waits for the progress
// of another: gradients and scalars go over data, expert_data and world (one stream, in one
// order on every rank), tokens over expert, and each direction of the pipeline has its own.
// Threading: Abort and progress() from any thread, also while Connect runs; the rest belongs to
// the step thread.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/parallel_layout.h"
#include "common/status.h"
#include "worker/collectives/communicator.h"

namespace paceline {

// One direction of an edge between two stages.
struct PipelineChannel {
  Communicator* communicator = nullptr;  // null: there is no such neighbour
  int peer = 0;                          // in it
};

class ParallelGroups {
 public:
  // `world` has the layout's world size.
  ParallelGroups(std::unique_ptr<Communicator> world, const ParallelLayout& layout);

  // Splits `world` into the groups. Collective; before anything else is communicated. Errors as
  // Communicator::Split's.
  absl::Status Connect();

  const ParallelLayout& layout() const { return layout_; }
  const RankCoordinates& coordinates() const { return coordinates_; }

  Communicator& world() { return *world_; }
  Communicator& data() { return *data_; }
  Communicator& expert() { return *expert_; }
  Communicator& expert_data() { return *expert_data_; }

  // Activations come from the segment before this rank's and go to the one after; gradients the
  // other way. With virtual stages the last stage's neighbour is the first.
  const PipelineChannel& activations_in() const { return activations_in_; }
  const PipelineChannel& activations_out() const { return activations_out_; }
  const PipelineChannel& gradients_in() const { return gradients_in_; }
  const PipelineChannel& gradients_out() const { return gradients_out_; }

  void Abort(const std::string& reason);
  // kAborted once it was called: who computes long between operations asks.
  absl::Status status() const;
  // The operation that is under way, if one is; counts are sums over the groups.
  CommunicatorProgress progress() const;

 private:
  absl::StatusOr<Communicator*> Split(const std::vector<int>& ranks);
  Communicator* Keep(std::unique_ptr<Communicator> communicator);
  absl::Status ConnectPipeline();
  absl::Status ConnectEdges(int colour, bool activations);

  const ParallelLayout layout_;
  Communicator* const world_;
  const RankCoordinates coordinates_;
  Communicator* data_ = nullptr;
  Communicator* expert_ = nullptr;
  Communicator* expert_data_ = nullptr;
  PipelineChannel activations_in_;
  PipelineChannel activations_out_;
  PipelineChannel gradients_in_;
  PipelineChannel gradients_out_;

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Communicator>> all_;  // the world first
  std::optional<std::string> abort_reason_;
};

}  // namespace paceline
