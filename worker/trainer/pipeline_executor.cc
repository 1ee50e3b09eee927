#include "worker/trainer/pipeline_executor.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/clock.h"

namespace paceline {

// Where one micro-batch of one segment stands. Each event's latest record is of the micro-batch
// that has the slot, or of the one before it.
struct PipelineExecutor::Slot {
  Event output_computed;
  Event output_sent;
  Event gradient_received;
  Event gradient_computed;
  Event gradient_sent;
  Event freed;
};

struct PipelineExecutor::Input {
  Event received;
  Event freed;
};

PipelineExecutor::PipelineExecutor(Model& model, ParallelGroups& groups, int slots,
                                   std::size_t elements, Stream& compute)
    : model_(model),
      layout_(groups.layout()),
      stage_(groups.coordinates().stage),
      slots_(slots),
      elements_(elements),
      compute_(compute),
      activations_in_{groups.activations_in(), nullptr},
      activations_out_{groups.activations_out(), nullptr},
      gradients_in_{groups.gradients_in(), nullptr},
      gradients_out_{groups.gradients_out(), nullptr},
      finished_(static_cast<std::size_t>(layout_.virtual_stages)) {
  for (Direction* direction :
       {&activations_in_, &activations_out_, &gradients_in_, &gradients_out_}) {
    if (direction->channel.communicator == nullptr) continue;
    direction->stream = std::make_unique<Stream>(Stream::Mode::kThread, "pipeline");
  }
  for (int i = 0; i < layout_.virtual_stages * slots_; ++i) {
    slot_.push_back(std::make_unique<Slot>());
  }
  for (int i = 0; i < layout_.virtual_stages * (slots_ + 1); ++i) {
    input_.push_back(std::make_unique<Input>());
  }
}

PipelineExecutor::~PipelineExecutor() = default;

bool PipelineExecutor::HasPrevious(int segment) const { return stage_ > 0 || segment > 0; }

bool PipelineExecutor::HasNext(int segment) const {
  return stage_ + 1 < layout_.pipeline || segment + 1 < layout_.virtual_stages;
}

PipelineExecutor::Slot& PipelineExecutor::SlotOf(const PipelineAction& action) {
  return *slot_[static_cast<std::size_t>(action.segment * slots_ + action.micro_batch % slots_)];
}

PipelineExecutor::Input& PipelineExecutor::InputOf(const PipelineAction& action) {
  const int places = slots_ + 1;
  return *input_[static_cast<std::size_t>(action.segment * places + action.micro_batch % places)];
}

SegmentBuffers PipelineExecutor::BuffersOf(const PipelineAction& action) {
  return model_.buffers(action.segment, action.micro_batch);
}

absl::Status PipelineExecutor::Run(const std::vector<PipelineAction>& actions,
                                   const PassHandlers& handlers) {
  std::fill(finished_.begin(), finished_.end(), 0);
  next_input_ = next_gradient_ = 0;
  forward_only_ = std::all_of(actions.begin(), actions.end(), [](const PipelineAction& action) {
    return action.pass == Pass::kForward;
  });
  for (const PipelineAction& action : actions) {
    PostReceives(actions);
    RETURN_IF_ERROR(Compute(action, handlers));
    RETURN_IF_ERROR(StreamErrors());
  }
  const auto computed = std::chrono::steady_clock::now();
  for (Direction* direction :
       {&activations_in_, &activations_out_, &gradients_in_, &gradients_out_}) {
    if (direction->stream) RETURN_IF_ERROR(direction->stream->Synchronize());
  }
  wait_seconds_ += SecondsBetween(computed, std::chrono::steady_clock::now());
  return compute_.status();
}

void PipelineExecutor::Drain() {
  for (Direction* direction :
       {&activations_in_, &activations_out_, &gradients_in_, &gradients_out_}) {
    if (direction->stream) direction->stream->Synchronize().IgnoreError();
  }
}

// In the order of the list, as far as places are free: that is the order in which the neighbour
// sends.
void PipelineExecutor::PostReceives(const std::vector<PipelineAction>& actions) {
  const auto has_place = [&](const PipelineAction& action, int places) {
    return action.micro_batch < finished_[static_cast<std::size_t>(action.segment)] + places;
  };
  for (; next_input_ < actions.size(); ++next_input_) {
    const PipelineAction& action = actions[next_input_];
    if (action.pass != Pass::kForward || !HasPrevious(action.segment)) continue;
    if (!has_place(action, slots_ + 1)) break;
    Input& input = InputOf(action);
    activations_in_.stream->Wait(input.freed);
    activations_in_.channel.communicator->Recv(*activations_in_.stream, "activations",
                                               BuffersOf(action).input, elements_,
                                               DataType::kFloat32, activations_in_.channel.peer);
    activations_in_.stream->Record(input.received);
  }
  for (; next_gradient_ < actions.size(); ++next_gradient_) {
    const PipelineAction& action = actions[next_gradient_];
    const bool backward = action.pass == Pass::kBackward || action.pass == Pass::kBackwardInput;
    if (!backward || !HasNext(action.segment)) continue;
    if (!has_place(action, slots_)) break;
    Slot& slot = SlotOf(action);
    gradients_in_.stream->Wait(slot.freed);
    gradients_in_.stream->Wait(slot.gradient_sent);
    gradients_in_.channel.communicator->Recv(*gradients_in_.stream, "activation gradients",
                                             BuffersOf(action).gradient, elements_,
                                             DataType::kFloat32, gradients_in_.channel.peer);
    gradients_in_.stream->Record(slot.gradient_received);
  }
}

absl::Status PipelineExecutor::Compute(const PipelineAction& action, const PassHandlers& handlers) {
  if (action.pass == Pass::kForward) {
    RETURN_IF_ERROR(Forward(action, handlers));
  } else {
    Backward(action, handlers);
  }
  const bool last =
      action.pass == Pass::kBackward || action.pass == Pass::kBackwardWeights || forward_only_;
  if (last) {
    ++finished_[static_cast<std::size_t>(action.segment)];
    compute_.Record(SlotOf(action).freed);
    compute_.Record(InputOf(action).freed);
  }
  return absl::OkStatus();
}

absl::Status PipelineExecutor::Forward(const PipelineAction& action, const PassHandlers& handlers) {
  ASSIGN_OR_RETURN(const MicroBatch batch, handlers.load(action.micro_batch));
  Slot& slot = SlotOf(action);
  if (HasPrevious(action.segment)) WaitFor(InputOf(action).received);
  if (HasNext(action.segment)) WaitFor(slot.output_sent);
  const float loss = model_.Forward(batch, action.segment, action.micro_batch);
  if (HasNext(action.segment)) {
    Send(activations_out_, "activations", BuffersOf(action).output, slot.output_computed,
         slot.output_sent);
  } else if (handlers.loss) {
    handlers.loss(action.micro_batch, loss);
  }
  return absl::OkStatus();
}

void PipelineExecutor::Backward(const PipelineAction& action, const PassHandlers& handlers) {
  Slot& slot = SlotOf(action);
  const bool accumulate = handlers.accumulate && action.micro_batch > 0;
  const auto bucket_ready = [&handlers, m = action.micro_batch](std::size_t bucket) {
    handlers.bucket_ready(bucket, m);
  };
  if (action.pass == Pass::kBackwardWeights) {
    model_.BackwardWeights(accumulate, bucket_ready, action.segment, action.micro_batch);
    return;
  }
  if (HasNext(action.segment)) WaitFor(slot.gradient_received);
  // The head writes a gradient that it has not received: the one before must have gone.
  WaitFor(slot.gradient_sent);
  if (action.pass == Pass::kBackward) {
    model_.Backward(handlers.loss_scale, accumulate, bucket_ready, action.segment,
                    action.micro_batch);
  } else {
    model_.BackwardInput(handlers.loss_scale, action.segment, action.micro_batch);
  }
  if (HasPrevious(action.segment)) {
    Send(gradients_out_, "activation gradients", BuffersOf(action).gradient, slot.gradient_computed,
         slot.gradient_sent);
  }
}

void PipelineExecutor::WaitFor(Event& event) {
  const auto begin = std::chrono::steady_clock::now();
  compute_.Wait(event);
  wait_seconds_ += SecondsBetween(begin, std::chrono::steady_clock::now());
}

void PipelineExecutor::Send(Direction& direction, const char* name, const float* data,
                            Event& computed, Event& sent) {
  compute_.Record(computed);
  direction.stream->Wait(computed);
  direction.channel.communicator->Send(*direction.stream, name, data, elements_, DataType::kFloat32,
                                       direction.channel.peer);
  direction.stream->Record(sent);
}

absl::Status PipelineExecutor::StreamErrors() const {
  for (const Direction* direction :
       {&activations_in_, &activations_out_, &gradients_in_, &gradients_out_}) {
    if (direction->stream) RETURN_IF_ERROR(direction->stream->status());
  }
  return compute_.status();
}

}  // namespace paceline
