#include "worker/collectives/parallel_groups.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace paceline {
namespace {

// Edge e leads from stage e to the next one. Edges of one colour share no stage, so a round of
// Split connects all of them at once; a ring of odd length needs a third colour.
constexpr int kColours = 3;

int ColourOf(int edge, int stages) { return edge == stages - 1 && stages % 2 == 1 ? 2 : edge % 2; }

}  // namespace

ParallelGroups::ParallelGroups(std::unique_ptr<Communicator> world, const ParallelLayout& layout)
    : layout_(layout),
      world_(world.get()),
      coordinates_(CoordinatesOf(layout, world->rank())),
      data_(world_) {
  PACELINE_CHECK(world->size() == layout_.world_size());
  Keep(std::move(world));
}

Communicator* ParallelGroups::Keep(std::unique_ptr<Communicator> communicator) {
  const std::lock_guard lock(mutex_);
  if (abort_reason_.has_value()) communicator->Abort(*abort_reason_);
  all_.push_back(std::move(communicator));
  return all_.back().get();
}

absl::StatusOr<Communicator*> ParallelGroups::Split(const std::vector<int>& ranks) {
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> group, world_->Split(ranks));
  return Keep(std::move(group));
}

absl::Status ParallelGroups::Connect() {
  const int rank = world_->rank();
  if (layout_.pipeline > 1) {
    ASSIGN_OR_RETURN(data_, Split(DataGroup(layout_, rank)));
  }
  if (layout_.expert > 1) {
    ASSIGN_OR_RETURN(expert_, Split(ExpertGroup(layout_, rank)));
    ASSIGN_OR_RETURN(expert_data_, Split(ExpertDataGroup(layout_, rank)));
  } else {
    expert_ = Keep(MakeSelfCommunicator());
    expert_data_ = data_;
  }
  return layout_.pipeline > 1 ? ConnectPipeline() : absl::OkStatus();
}

absl::Status ParallelGroups::ConnectPipeline() {
  for (const bool activations : {true, false}) {
    for (int colour = 0; colour < kColours; ++colour) {
      RETURN_IF_ERROR(ConnectEdges(colour, activations));
    }
  }
  return absl::OkStatus();
}

absl::Status ParallelGroups::ConnectEdges(int colour, bool activations) {
  const int stages = layout_.pipeline;
  const int edges = layout_.virtual_stages > 1 ? stages : stages - 1;
  std::vector<int> ranks = {world_->rank()};
  int own_edge = -1;
  for (int edge = 0; edge < edges; ++edge) {
    const int to = (edge + 1) % stages;
    if (ColourOf(edge, stages) != colour) continue;
    if (coordinates_.stage != edge && coordinates_.stage != to) continue;
    own_edge = edge;
    ranks = {RankAt(layout_, edge, coordinates_.data), RankAt(layout_, to, coordinates_.data)};
    std::sort(ranks.begin(), ranks.end());
  }
  ASSIGN_OR_RETURN(Communicator * pair, Split(ranks));
  if (own_edge == -1) return absl::OkStatus();
  const PipelineChannel channel{pair, 1 - pair->rank()};
  // The edge's beginning sends activations and receives gradients.
  const bool begins_here = coordinates_.stage == own_edge;
  if (activations) {
    (begins_here ? activations_out_ : activations_in_) = channel;
  } else {
    (begins_here ? gradients_in_ : gradients_out_) = channel;
  }
  return absl::OkStatus();
}

void ParallelGroups::Abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (!abort_reason_.has_value()) abort_reason_ = reason;
  for (const std::unique_ptr<Communicator>& communicator : all_) communicator->Abort(reason);
}

absl::Status ParallelGroups::status() const {
  const std::lock_guard lock(mutex_);
  return abort_reason_.has_value() ? absl::AbortedError(*abort_reason_) : absl::OkStatus();
}

CommunicatorProgress ParallelGroups::progress() const {
  const std::lock_guard lock(mutex_);
  CommunicatorProgress all;
  for (const std::unique_ptr<Communicator>& communicator : all_) {
    const CommunicatorProgress one = communicator->progress();
    if (one.entered > one.left || *all.operation == '\0') all.operation = one.operation;
    all.entered += one.entered;
    all.left += one.left;
  }
  return all;
}

}  // namespace paceline
