// What the stages of a pipeline really execute: four ranks as threads over loopback, each with its
// part of a model and an executor of its own.
// The models tell their passes, since a pass begins when the executor has waited for what it needs.
// Of the handlers, `load` is called before that, and none tells of a gradient of the input.
#include "worker/trainer/pipeline_executor.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/parallel_layout.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/rank_threads.h"
#include "worker/model/arena_memory.h"
#include "worker/model/transformer.h"

namespace paceline {
namespace {

constexpr int kStages = 4;
constexpr int kMicroBatches = 8;
constexpr std::int64_t kSequence = 8;
constexpr std::int64_t kHidden = 32;
constexpr std::size_t kElements = kSequence * kHidden;

struct Case {
  std::string schedule;
  int virtual_stages = 1;
  std::vector<int> slots;  // micro-batches in flight in a segment, at most; by stage
};

void PrintTo(const Case& at, std::ostream* out) { *out << at.schedule; }

PipelineShape ShapeOf(const Case& at) {
  return {at.schedule, kStages, at.virtual_stages, kMicroBatches};
}

ModelSection EightLayers() {
  ModelSection model;
  model.vocab_size = 37;
  model.hidden_size = kHidden;
  model.num_hidden_layers = 8;
  model.num_attention_heads = 2;
  model.num_key_value_heads = 2;
  model.head_dim = 16;
  model.intermediate_size = 48;
  model.n_routed_experts = 0;
  model.initializer_range = 0.2;
  return model;
}

// A pass as it was executed.
struct Executed {
  PipelineAction action;
  int begin = 0;             // ticks of a clock that all stages share
  int end = 0;               // before anything is sent
  std::vector<float> taken;  // what the stage received for the pass
  std::vector<float> left;   // what it is to send
  std::vector<float> input;  // the segment's, at the end of the pass
};

struct StageRecord {
  std::vector<std::string> events;  // passes as they begin, calls of the handlers
  std::vector<Executed> passes;
};

std::string EventOf(const PipelineAction& action) {
  const char* names[] = {"forward", "backward", "backward of the input", "backward of the weights"};
  return absl::StrCat(names[static_cast<int>(action.pass)], ", segment ", action.segment,
                      ", micro-batch ", action.micro_batch);
}

std::string LoadEvent(int micro_batch) { return absl::StrCat("load ", micro_batch); }
std::string LossEvent(int micro_batch) { return absl::StrCat("loss ", micro_batch); }
std::string BucketEvent(std::size_t bucket, int micro_batch) {
  return absl::StrCat("bucket ", bucket, ", micro-batch ", micro_batch);
}

bool HasWeightGradients(const PipelineAction& action) {
  return action.pass == Pass::kBackward || action.pass == Pass::kBackwardWeights;
}

// Segments this small have a bucket each, the last one's first.
std::vector<std::string> EventsOf(const PipelineShape& shape, int stage) {
  std::vector<std::string> events;
  for (const PipelineAction& action : PipelineActions(shape, stage)) {
    const bool head = stage == shape.stages - 1 && action.segment == shape.virtual_stages - 1;
    const bool forward = action.pass == Pass::kForward;
    if (forward) events.push_back(LoadEvent(action.micro_batch));
    events.push_back(EventOf(action));
    if (forward && head) events.push_back(LossEvent(action.micro_batch));
    if (!HasWeightGradients(action)) continue;
    const auto bucket = static_cast<std::size_t>(shape.virtual_stages - 1 - action.segment);
    events.push_back(BucketEvent(bucket, action.micro_batch));
  }
  return events;
}

class RecordingModel : public Transformer {
 public:
  RecordingModel(const ModelSection& section, const ModelOptions& options, Stream& compute,
                 const TransformerSizes& sizes, std::atomic<int>& clock, StageRecord& record)
      : Transformer(section, options, compute,
                    ArenaMemory::Map(sizes.saved_bytes + sizes.scratch_bytes).value(), sizes),
        clock_(clock),
        record_(record) {}

  float Forward(const MicroBatch& batch, int segment, int micro_batch) override {
    float loss = 0;
    Record({Pass::kForward, segment, micro_batch},
           [&] { loss = Transformer::Forward(batch, segment, micro_batch); });
    return loss;
  }
  void Backward(float loss_scale, bool accumulate,
                const std::function<void(std::size_t)>& bucket_ready, int segment,
                int micro_batch) override {
    Record({Pass::kBackward, segment, micro_batch}, [&] {
      Transformer::Backward(loss_scale, accumulate, bucket_ready, segment, micro_batch);
    });
  }
  void BackwardInput(float loss_scale, int segment, int micro_batch) override {
    Record({Pass::kBackwardInput, segment, micro_batch},
           [&] { Transformer::BackwardInput(loss_scale, segment, micro_batch); });
  }
  void BackwardWeights(bool accumulate, const std::function<void(std::size_t)>& bucket_ready,
                       int segment, int micro_batch) override {
    Record({Pass::kBackwardWeights, segment, micro_batch},
           [&] { Transformer::BackwardWeights(accumulate, bucket_ready, segment, micro_batch); });
  }

 private:
  static std::vector<float> Copy(const float* values) {
    if (values == nullptr) return {};
    return {values, values + kElements};
  }

  void Record(const PipelineAction& action, const std::function<void()>& compute) {
    const SegmentBuffers at = buffers(action.segment, action.micro_batch);
    const bool forward = action.pass == Pass::kForward;
    Executed pass{.action = action, .begin = clock_++};
    record_.events.push_back(EventOf(action));
    pass.taken = Copy(forward ? at.input : at.gradient);
    compute();
    pass.left = Copy(forward ? at.output : at.gradient);
    pass.input = Copy(at.input);
    pass.end = clock_++;
    record_.passes.push_back(std::move(pass));
  }

  std::atomic<int>& clock_;
  StageRecord& record_;
};

void RunStage(std::unique_ptr<Communicator> world, const PipelineShape& shape,
              std::atomic<int>& clock, StageRecord& record) {
  const int stage = world->rank();
  RunFile run;
  run.model = EightLayers();
  run.train.sequence_length = kSequence;
  const ParallelLayout layout{
      .pipeline = shape.stages, .virtual_stages = shape.virtual_stages, .schedule = shape.schedule};
  const std::vector<PipelineAction> actions = PipelineActions(shape, stage);
  const ModelOptions options{.micro_batch_size = 1,
                             .sequence_length = kSequence,
                             .part = PartOf(run, layout, stage),
                             .slots = ActivationSlots(actions),
                             .split_backward = shape.schedule == "zero-bubble"};
  Stream compute(Stream::Mode::kInline, "compute");
  const TransformerSizes sizes = Transformer(run.model, options, compute).sizes();
  RecordingModel model(run.model, options, compute, sizes, clock, record);
  model.Initialize(/*seed=*/1);

  ParallelGroups groups(std::move(world), layout);
  const absl::Status connected = groups.Connect();
  ASSERT_TRUE(connected.ok()) << connected;
  PipelineExecutor executor(model, groups, options.slots, kElements, compute);
  std::vector<std::int32_t> tokens(kSequence);
  PassHandlers handlers;
  handlers.load = [&](int micro_batch) -> absl::StatusOr<MicroBatch> {
    record.events.push_back(LoadEvent(micro_batch));
    std::fill(tokens.begin(), tokens.end(), micro_batch);
    return MicroBatch{tokens, tokens, 1, kSequence};
  };
  handlers.loss = [&](int micro_batch, float) { record.events.push_back(LossEvent(micro_batch)); };
  handlers.bucket_ready = [&](std::size_t bucket, int micro_batch) {
    record.events.push_back(BucketEvent(bucket, micro_batch));
  };
  const absl::Status ran = executor.Run(actions, handlers);
  EXPECT_TRUE(ran.ok()) << "stage " << stage << ": " << ran;
}

class PipelineExecutorTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto communicators = ConnectRanks(kStages);
    ASSERT_FALSE(communicators.empty());
    std::atomic<int> clock = 0;
    std::vector<std::jthread> threads;
    for (auto& world : communicators) {
      StageRecord& record = records_[threads.size()];
      threads.emplace_back(
          [this, &world, &clock, &record] { RunStage(std::move(world), shape_, clock, record); });
    }
  }

  const PipelineShape shape_ = ShapeOf(GetParam());
  std::vector<StageRecord> records_ = std::vector<StageRecord>(kStages);  // by stage
};

INSTANTIATE_TEST_SUITE_P(Schedules, PipelineExecutorTest,
                         testing::Values(Case{"1f1b", 1, {4, 3, 2, 1}},
                                         Case{"interleaved", 2, {8, 8, 7, 5}},
                                         Case{"zero-bubble", 1, {4, 4, 4, 4}}),
                         [](const auto& info) {
                           std::string name = info.param.schedule;
                           std::erase(name, '-');
                           return name;
                         });

TEST_P(PipelineExecutorTest, EveryStageExecutesItsListInOrder) {
  for (int stage = 0; stage < kStages; ++stage) {
    EXPECT_EQ(records_[static_cast<std::size_t>(stage)].events, EventsOf(shape_, stage))
        << "stage " << stage;
  }
}

// By pass, segment of the whole model and micro-batch.
using PassKey = std::tuple<Pass, int, int>;

std::map<PassKey, Executed> PassesOf(const std::vector<StageRecord>& records) {
  std::map<PassKey, Executed> passes;
  for (std::size_t stage = 0; stage < records.size(); ++stage) {
    for (const Executed& pass : records[stage].passes) {
      const int segment = pass.action.segment * kStages + static_cast<int>(stage);
      passes[{pass.action.pass, segment, pass.action.micro_batch}] = pass;
    }
  }
  return passes;
}

// As common/pipeline_schedule.h has it.
std::vector<PassKey> NeedsOf(const PassKey& key, int segments) {
  const auto [pass, segment, micro_batch] = key;
  std::vector<PassKey> needs;
  switch (pass) {
    case Pass::kForward:
      if (segment > 0) needs.push_back({pass, segment - 1, micro_batch});
      break;
    case Pass::kBackward:
    case Pass::kBackwardInput:
      needs.push_back({Pass::kForward, segment, micro_batch});
      if (segment + 1 < segments) needs.push_back({pass, segment + 1, micro_batch});
      break;
    case Pass::kBackwardWeights:
      needs.push_back({Pass::kBackwardInput, segment, micro_batch});
      break;
  }
  return needs;
}

TEST_P(PipelineExecutorTest, NoPassBeginsBeforeWhatItNeedsHasEndedAndHasCome) {
  const std::map<PassKey, Executed> passes = PassesOf(records_);
  for (const auto& [key, pass] : passes) {
    for (const PassKey& need : NeedsOf(key, kStages * shape_.virtual_stages)) {
      SCOPED_TRACE(testing::Message() << EventOf(pass.action) << ", of segment " << std::get<1>(key)
                                      << " of the whole model");
      const auto before = passes.find(need);
      ASSERT_NE(before, passes.end());
      EXPECT_LT(before->second.end, pass.begin);
      if (std::get<1>(need) == std::get<1>(key)) continue;  // nothing was sent
      EXPECT_TRUE(before->second.left == pass.taken) << "got something else than was sent";
    }
  }
}

TEST_P(PipelineExecutorTest, AsManyMicroBatchesAreInFlightAsThereAreSlotsAndKeepTheirInput) {
  for (std::size_t stage = 0; stage < records_.size(); ++stage) {
    SCOPED_TRACE(testing::Message() << "stage " << stage);
    std::vector<std::map<int, std::vector<float>>> in_flight(
        static_cast<std::size_t>(shape_.virtual_stages));  // by segment: inputs, by micro-batch
    std::size_t most = 0;
    for (const Executed& pass : records_[stage].passes) {
      auto& inputs = in_flight[static_cast<std::size_t>(pass.action.segment)];
      const int micro_batch = pass.action.micro_batch;
      if (pass.action.pass == Pass::kForward) inputs[micro_batch] = pass.taken;
      most = std::max(most, inputs.size());
      EXPECT_TRUE(pass.input == inputs[micro_batch]) << EventOf(pass.action);
      if (HasWeightGradients(pass.action)) inputs.erase(micro_batch);
    }
    EXPECT_EQ(most, static_cast<std::size_t>(GetParam().slots[stage]));
  }
}

}  // namespace
}  // namespace paceline
