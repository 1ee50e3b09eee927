// Parts of a model, run by hand through a pipeline's schedule, against the whole model.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/parallel_layout.h"
#include "common/pipeline_schedule.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model/model.h"

namespace paceline {
namespace {

constexpr std::int64_t kRows = 2;
constexpr std::int64_t kSequence = 11;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

ModelSection Small(bool sparse) {
  ModelSection model;
  model.vocab_size = 37;
  model.hidden_size = 32;
  model.num_hidden_layers = 5;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 10;
  model.intermediate_size = 48;
  model.n_routed_experts = sparse ? 5 : 0;
  model.n_shared_experts = 1;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 20;
  model.first_k_dense_replace = 2;
  model.scoring_func = "sigmoid";
  model.initializer_range = 0.2;
  return model;
}

struct Batch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
  std::int64_t rows;
  std::int64_t sequence;

  operator MicroBatch() const { return {tokens, targets, rows, sequence}; }
};

// Of different sizes, so that what another micro-batch left behind would show.
Batch MakeBatch(int micro_batch) {
  Batch batch{{}, {}, 1 + micro_batch % kRows, kSequence - micro_batch % 3};
  for (std::int64_t i = 0; i < batch.rows * batch.sequence; ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>((micro_batch * 5 + i * i) % 37));
    batch.targets.push_back(static_cast<std::int32_t>((micro_batch + (i + 1) * (i + 1)) % 37));
  }
  return batch;
}

// What a step over some micro-batches leaves behind.
struct StepResult {
  std::vector<float> losses;                           // by micro-batch
  std::map<std::string, std::vector<float>> gradient;  // of the last micro-batch, or accumulated
  std::map<std::string, std::vector<double>> sum;      // over micro-batches, taken when reported
  std::vector<std::int64_t> expert_tokens;
};

// One model and the sums of its gradients as a trainer keeps them: bucket by bucket, in the
// order of the micro-batches.
class Stage {
 public:
  Stage(const ModelSection& section, const ModelOptions& options, bool accumulate)
      : model_(Model::Create(section, options, compute_).value()),
        sums_(model_->gradients().size(), 0.0),
        buckets_reported_(model_->buckets().size(), 0),
        accumulate_(accumulate) {
    model_->Initialize(/*seed=*/1);
    std::ranges::fill(model_->gradients(), kNaN);
  }

  Model& model() { return *model_; }
  bool AccumulatesAt(int micro_batch) const { return accumulate_ && micro_batch > 0; }

  // The bucket_ready of a backward of `micro_batch`.
  std::function<void(std::size_t)> Collect(int micro_batch) {
    return [this, micro_batch](std::size_t index) {
      EXPECT_EQ(buckets_reported_[index]++, micro_batch) << "bucket " << index;
      const GradientBucket& bucket = model_->buckets()[index];
      for (std::int64_t i = bucket.offset; i < bucket.offset + bucket.elements; ++i) {
        sums_[static_cast<std::size_t>(i)] += model_->gradients()[static_cast<std::size_t>(i)];
      }
    };
  }

  void AddTo(StepResult& result, int micro_batches) {
    EXPECT_THAT(buckets_reported_, testing::Each(micro_batches));
    for (const Parameter& parameter : model_->parameters()) {
      const auto first = static_cast<std::ptrdiff_t>(parameter.offset);
      const auto end = first + static_cast<std::ptrdiff_t>(parameter.elements);
      const std::span<float> gradients = model_->gradients();
      result.gradient[parameter.name] = {gradients.begin() + first, gradients.begin() + end};
      result.sum[parameter.name] = {sums_.begin() + first, sums_.begin() + end};
    }
    const std::span<std::int64_t> tokens = model_->expert_tokens();
    result.expert_tokens.resize(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) result.expert_tokens[i] += tokens[i];
  }

 private:
  Stream compute_{Stream::Mode::kInline, "compute"};
  std::unique_ptr<Model> model_;
  std::vector<double> sums_;
  std::vector<int> buckets_reported_;
  const bool accumulate_;
};

StepResult RunWhole(const ModelSection& section, int micro_batches, bool accumulate) {
  Stage whole(section, {kRows, kSequence}, accumulate);
  StepResult result;
  for (int m = 0; m < micro_batches; ++m) {
    result.losses.push_back(whole.model().Forward(MakeBatch(m)));
    whole.model().Backward(0.5f, whole.AccumulatesAt(m), whole.Collect(m));
  }
  whole.AddTo(result, micro_batches);
  return result;
}

// Executes every stage's list as far as what it needs has arrived, stage after stage.
class Pipeline {
 public:
  Pipeline(const ModelSection& section, const PipelineShape& shape, bool accumulate)
      : shape_(shape), segments_(shape.stages * shape.virtual_stages) {
    const std::vector<LayerRange> ranges = SplitLayers(section, kSequence, segments_);
    for (int s = 0; s < shape.stages; ++s) {
      ModelPart part = WholeModel(section);
      part.segments.clear();
      for (int v = 0; v < shape.virtual_stages; ++v) {
        part.segments.push_back(ranges[static_cast<std::size_t>(v * shape.stages + s)]);
      }
      actions_.push_back(PipelineActions(shape, s));
      const ModelOptions options{.micro_batch_size = kRows,
                                 .sequence_length = kSequence,
                                 .part = part,
                                 .slots = ActivationSlots(actions_.back()),
                                 .split_backward = shape.schedule == "zero-bubble"};
      stages_.push_back(std::make_unique<Stage>(section, options, accumulate));
    }
    downstream_.resize(static_cast<std::size_t>(segments_));
    upstream_.resize(static_cast<std::size_t>(segments_));
    losses_.resize(static_cast<std::size_t>(shape.micro_batches));
    hidden_ = section.hidden_size;
  }

  StepResult Run() {
    std::vector<std::size_t> next(stages_.size(), 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t s = 0; s < stages_.size(); ++s) {
        while (next[s] < actions_[s].size() &&
               TryAction(static_cast<int>(s), actions_[s][next[s]])) {
          ++next[s];
          moved = true;
        }
      }
    }
    StepResult result;
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      EXPECT_EQ(next[s], actions_[s].size()) << "stage " << s << " is stuck";
      stages_[s]->AddTo(result, shape_.micro_batches);
    }
    result.losses = losses_;
    return result;
  }

 private:
  using Channel = std::deque<std::vector<float>>;

  static bool Receive(Channel& channel, float* to) {
    if (channel.empty()) return false;
    std::ranges::copy(channel.front(), to);
    channel.pop_front();
    return true;
  }

  // The sender's buffer is spoilt once it is sent: nobody may rely on it.
  static void Send(Channel& channel, float* from, std::int64_t elements, bool spoil) {
    channel.emplace_back(from, from + elements);
    if (spoil) std::fill_n(from, elements, kNaN);
  }

  bool TryAction(int s, const PipelineAction& action) {
    Stage& stage = *stages_[static_cast<std::size_t>(s)];
    const int m = action.micro_batch;
    const int segment = action.segment;
    const auto global = static_cast<std::size_t>(segment * shape_.stages + s);
    const bool first = global == 0;
    const bool last = static_cast<int>(global) == segments_ - 1;
    const Batch batch = MakeBatch(m);
    const std::int64_t elements = batch.rows * batch.sequence * hidden_;
    const SegmentBuffers buffers = stage.model().buffers(segment, m);
    EXPECT_EQ(buffers.input == nullptr, first);
    EXPECT_EQ(buffers.output == nullptr, last);
    if (action.pass == Pass::kForward) {
      if (!first && !Receive(downstream_[global], buffers.input)) return false;
      MicroBatch own = batch;
      if (!first) own.tokens = {};
      if (!last) own.targets = {};
      const float loss = stage.model().Forward(own, segment, m);
      if (last) {
        losses_[static_cast<std::size_t>(m)] = loss;
      } else {
        EXPECT_EQ(loss, 0);
        Send(downstream_[global + 1], buffers.output, elements, /*spoil=*/false);
      }
      return true;
    }
    if (action.pass == Pass::kBackwardWeights) {
      stage.model().BackwardWeights(stage.AccumulatesAt(m), stage.Collect(m), segment, m);
      return true;
    }
    if (!last && !Receive(upstream_[global], buffers.gradient)) return false;
    if (action.pass == Pass::kBackward) {
      stage.model().Backward(0.5f, stage.AccumulatesAt(m), stage.Collect(m), segment, m);
    } else {
      stage.model().BackwardInput(0.5f, segment, m);
    }
    if (!first) Send(upstream_[global - 1], buffers.gradient, elements, /*spoil=*/true);
    return true;
  }

  const PipelineShape shape_;
  const int segments_;
  std::int64_t hidden_ = 0;
  std::vector<std::vector<PipelineAction>> actions_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::vector<Channel> downstream_;  // by the segment that receives
  std::vector<Channel> upstream_;
  std::vector<float> losses_;
};

std::vector<PipelineShape> Shapes() {
  return {
      {.schedule = "1f1b", .stages = 2, .micro_batches = 3},
      {.schedule = "1f1b", .stages = 4, .micro_batches = 6},
      {.schedule = "interleaved", .stages = 2, .virtual_stages = 2, .micro_batches = 4},
      {.schedule = "zero-bubble", .stages = 1, .micro_batches = 2},
      {.schedule = "zero-bubble", .stages = 2, .micro_batches = 5},
      {.schedule = "zero-bubble", .stages = 4, .micro_batches = 6},
  };
}

TEST(ModelPartsTest, EveryScheduleGivesTheWholeModelsBits) {
  for (const bool sparse : {false, true}) {
    const ModelSection section = Small(sparse);
    for (const bool accumulate : {false, true}) {
      for (const PipelineShape& shape : Shapes()) {
        SCOPED_TRACE(testing::Message() << shape.schedule << " stages " << shape.stages
                                        << " sparse " << sparse << " accumulate " << accumulate);
        ASSERT_TRUE(CheckPipelineShape(shape).ok());
        const StepResult whole = RunWhole(section, shape.micro_batches, accumulate);
        const StepResult parts = Pipeline(section, shape, accumulate).Run();
        EXPECT_EQ(parts.losses, whole.losses);
        EXPECT_EQ(parts.sum, whole.sum);
        EXPECT_EQ(parts.expert_tokens, whole.expert_tokens);
        // Without accumulation: that of the last micro-batch, the same at every stage.
        EXPECT_EQ(parts.gradient, whole.gradient);
      }
    }
  }
}

class ModelPartTest : public testing::Test {
 protected:
  std::unique_ptr<Model> Make(const ModelSection& section, const ModelPart& part) {
    auto model = Model::Create(
        section, {.micro_batch_size = kRows, .sequence_length = kSequence, .part = part}, compute_);
    EXPECT_TRUE(model.ok()) << model.status();
    (*model)->Initialize(/*seed=*/1);
    return *std::move(model);
  }

  Stream compute_{Stream::Mode::kInline, "compute"};
};

TEST_F(ModelPartTest, ParametersAndStateAreThoseOfThePart) {
  const ModelSection section = Small(/*sparse=*/true);
  const std::unique_ptr<Model> whole = Make(section, {});
  for (const ModelPart& part : std::vector<ModelPart>{
           WholeModel(section),
           {.segments = {{0, 3}}, .first_expert = 0, .end_expert = 5},
           {.segments = {{3, 5}}, .first_expert = 2, .end_expert = 3},
           {.segments = {{1, 2}, {3, 4}}, .first_expert = 4, .end_expert = 5},
       }) {
    const std::unique_ptr<Model> model = Make(section, part);
    std::map<std::string, std::vector<std::int64_t>> expected;
    for (const TensorShape& tensor : ModelTensors(section, part)) {
      expected[tensor.name] = tensor.shape;
    }
    std::map<std::string, std::vector<std::int64_t>> actual;
    for (const Parameter& parameter : model->parameters()) {
      actual[parameter.name] = parameter.shape;
      const auto same = std::ranges::find(whole->parameters(), parameter.name, &Parameter::name);
      ASSERT_NE(same, whole->parameters().end());
      EXPECT_TRUE(std::equal(model->weights().begin() + parameter.offset,
                             model->weights().begin() + parameter.offset + parameter.elements,
                             whole->weights().begin() + same->offset))
          << parameter.name;
    }
    EXPECT_EQ(actual, expected);
    std::vector<std::string> buffers;
    for (const StateBuffer& buffer : model->state_buffers()) buffers.push_back(buffer.name);
    std::vector<std::string> buffers_expected;
    for (const TensorShape& tensor : ModelStateBuffers(section, part)) {
      buffers_expected.push_back(tensor.name);
    }
    EXPECT_EQ(buffers, buffers_expected);
    EXPECT_EQ(model->expert_tokens().size(), 3u * 5u);
  }
}

TEST_F(ModelPartTest, RoutedExpertsLieBehindEverythingElseAndInBucketsOfTheirOwn) {
  const ModelSection section = Small(/*sparse=*/true);
  const ModelPart part{.segments = {{0, 2}, {2, 4}, {4, 5}}, .first_expert = 0, .end_expert = 5};
  const std::unique_ptr<Model> model = Make(section, part);
  std::int64_t end = 0;
  bool experts_began = false;
  for (const Parameter& parameter : model->parameters()) {
    EXPECT_EQ(parameter.offset, end);
    end += parameter.elements;
    const bool expert = parameter.name.find(".mlp.experts.") != std::string::npos;
    EXPECT_TRUE(expert || !experts_began) << parameter.name;
    experts_began = expert;
    const auto holds = [&](const GradientBucket& bucket) {
      return bucket.offset <= parameter.offset &&
             parameter.offset + parameter.elements <= bucket.offset + bucket.elements;
    };
    const auto bucket = std::ranges::find_if(model->buckets(), holds);
    ASSERT_NE(bucket, model->buckets().end()) << parameter.name;
    EXPECT_EQ(bucket->expert, expert) << parameter.name;
  }
  EXPECT_TRUE(experts_began);
  EXPECT_EQ(end, static_cast<std::int64_t>(model->weights().size()));
  // The last segment's and the middle one's replicated parameters and experts, the first one's.
  EXPECT_EQ(model->buckets().size(), 5u);
}

TEST_F(ModelPartTest, RouterBiasesOfThePartsLayersMoveByTheirRowsOfTheLoads) {
  const ModelSection section = Small(/*sparse=*/true);
  const std::unique_ptr<Model> model =
      Make(section, {.segments = {{3, 5}}, .first_expert = 0, .end_expert = 5});
  const std::vector<std::int64_t> loads = {9, 0, 0, 0, 0, 2, 3, 1, 2, 2, 0, 0, 0, 0, 10};
  std::ranges::copy(loads, model->expert_tokens().begin());
  model->UpdateRouterBias(0.5f);
  ASSERT_EQ(model->state_buffers().size(), 2u);
  const float* first = model->state_buffers()[0].data;
  EXPECT_THAT(std::vector<float>(first, first + 5), testing::ElementsAre(0, -0.5, 0.5, 0, 0));
  const float* second = model->state_buffers()[1].data;
  EXPECT_THAT(std::vector<float>(second, second + 5),
              testing::ElementsAre(0.5, 0.5, 0.5, 0.5, -0.5));
}

TEST_F(ModelPartTest, TiedTableIsNotSplit) {
  ModelSection section = Small(/*sparse=*/false);
  section.tie_word_embeddings = true;
  const auto model = Model::Create(section,
                                   {.micro_batch_size = kRows,
                                    .sequence_length = kSequence,
                                    .part = {.segments = {{0, 2}, {2, 5}}}},
                                   compute_);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()), testing::HasSubstr("tie_word_embeddings"));
}

// Evaluation: segments without training, one after the other.
TEST_F(ModelPartTest, PartsWithoutTrainingGiveTheWholeModelsLoss) {
  const ModelSection section = Small(/*sparse=*/true);
  ModelOptions options{.micro_batch_size = kRows, .sequence_length = kSequence, .training = false};
  options.part = WholeModel(section);
  options.part.segments = {{0, 1}, {1, 4}, {4, 5}};
  options.slots = 2;
  const auto model = Model::Create(section, options, compute_);
  ASSERT_TRUE(model.ok()) << model.status();
  (*model)->Initialize(/*seed=*/1);
  // Two slots, three places for inputs.
  std::set<const float*> inputs;
  for (int m = 0; m < 3; ++m) inputs.insert((*model)->buffers(1, m).input);
  EXPECT_EQ(inputs.size(), 3u);
  EXPECT_EQ((*model)->buffers(1, 3).input, (*model)->buffers(1, 0).input);
  EXPECT_EQ((*model)->buffers(1, 2).output, (*model)->buffers(1, 0).output);
  const Batch batches[] = {MakeBatch(0), MakeBatch(1)};
  float losses[2] = {};
  for (int segment = 0; segment < 3; ++segment) {
    for (int slot = 0; slot < 2; ++slot) {
      losses[slot] = (*model)->Forward(batches[slot], segment, slot);
      if (segment == 2) continue;
      std::copy_n((*model)->buffers(segment, slot).output, kRows * kSequence * section.hidden_size,
                  (*model)->buffers(segment + 1, slot).input);
    }
  }
  const std::unique_ptr<Model> whole = Make(section, {});
  EXPECT_EQ(losses[0], whole->Forward(batches[0]));
  EXPECT_EQ(losses[1], whole->Forward(batches[1]));
}

}  // namespace
}  // namespace paceline
