// Runs a pipeline schedule (common/pipeline_schedule.h) on one rank: computes the passes in the
// order of the list and moves activations and gradients between stages, each direction on a
// stream of its own, so that sending and receiving overlap computing. One stage is a pipeline
// like any other: it just has nobody to talk to.
//
//   receive input --> Forward --> send output       receive gradient --> Backward --> send gradient
//
// Receives are posted as soon as their place in the segment is free, in the order of the list; an
// input has one more than there are slots, so that the next one arrives while the last free slot's
// micro-batch computes.
// Invariant: a buffer is written again only after the last pass that reads it, and after what was
// sent from it has gone.
// Threading: belongs to the step thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/pipeline_schedule.h"
#include "common/status.h"
#include "worker/collectives/parallel_groups.h"
#include "worker/kernels/stream.h"
#include "worker/model/model.h"

namespace paceline {

// What the passes of one schedule need and report.
struct PassHandlers {
  // The micro-batch's tokens and targets, valid until the next call.
  std::function<absl::StatusOr<MicroBatch>(int micro_batch)> load;
  // The loss of a micro-batch; only where the last segment is here.
  std::function<void(int micro_batch, float loss)> loss;
  // Gradients of bucket `bucket` are complete on the compute stream for this micro-batch.
  std::function<void(std::size_t bucket, int micro_batch)> bucket_ready;
  float loss_scale = 1;
  bool accumulate = false;  // gradients of all micro-batches but the first are added up
};

class PipelineExecutor {
 public:
  // `model` has `slots` activation slots in each of its segments. `elements`: of what passes
  // between stages, (micro_batch_size * sequence_length, hidden_size).
  PipelineExecutor(Model& model, ParallelGroups& groups, int slots, std::size_t elements,
                   Stream& compute);
  ~PipelineExecutor();

  // Runs `actions` and returns when everything has been computed and sent. The first error of
  // any stream.
  absl::Status Run(const std::vector<PipelineAction>& actions, const PassHandlers& handlers);

  // After a failure, with the groups aborted: waits until no stream uses the model, the slots or
  // the groups any more.
  void Drain();

  // Time for which the compute stream waited, cumulative: before passes for another stage's message
  // to come or one of its own to leave the place that the pass writes, at the end for its own to
  // go.
  double wait_seconds() const { return wait_seconds_; }

 private:
  struct Direction {
    PipelineChannel channel;
    std::unique_ptr<Stream> stream;  // null: there is no such neighbour
  };
  struct Slot;
  struct Input;

  bool HasPrevious(int segment) const;
  bool HasNext(int segment) const;
  Slot& SlotOf(const PipelineAction& action);
  Input& InputOf(const PipelineAction& action);
  SegmentBuffers BuffersOf(const PipelineAction& action);
  void PostReceives(const std::vector<PipelineAction>& actions);
  absl::Status Compute(const PipelineAction& action, const PassHandlers& handlers);
  absl::Status Forward(const PipelineAction& action, const PassHandlers& handlers);
  void Backward(const PipelineAction& action, const PassHandlers& handlers);
  void WaitFor(Event& event);
  void Send(Direction& direction, const char* name, const float* data, Event& computed,
            Event& sent);
  absl::Status StreamErrors() const;

  Model& model_;
  const ParallelLayout layout_;
  const int stage_;
  const int slots_;
  const std::size_t elements_;
  Stream& compute_;
  // They outlive the streams.
  std::vector<std::unique_ptr<Slot>> slot_;    // segment * slots + slot
  std::vector<std::unique_ptr<Input>> input_;  // segment * (slots + 1) + place
  Direction activations_in_;
  Direction activations_out_;
  Direction gradients_in_;
  Direction gradients_out_;

  // Of the list that runs.
  std::vector<int> finished_;   // by segment: micro-batches through with their slot
  std::size_t next_input_ = 0;  // the first action whose receives are not posted
  std::size_t next_gradient_ = 0;
  bool forward_only_ = false;
  double wait_seconds_ = 0;
};

}  // namespace paceline
