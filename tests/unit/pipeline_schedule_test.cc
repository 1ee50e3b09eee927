#include "common/pipeline_schedule.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {

void PrintTo(const PipelineShape& shape, std::ostream* out) {
  *out << shape.schedule << ", " << shape.stages << " stages of " << shape.virtual_stages
       << " segments, " << shape.micro_batches << " micro-batches";
}

namespace {

using ::testing::HasSubstr;

using Lists = std::vector<std::vector<PipelineAction>>;  // by stage

Lists ListsOf(const PipelineShape& shape) {
  Lists lists;
  for (int stage = 0; stage < shape.stages; ++stage) {
    lists.push_back(PipelineActions(shape, stage));
  }
  return lists;
}

// What the passes of one segment take.
struct Durations {
  int forward = 0;
  int backward_input = 0;
  int backward_weights = 0;

  int Of(Pass pass) const {
    switch (pass) {
      case Pass::kForward:
        return forward;
      case Pass::kBackward:
        return backward_input + backward_weights;
      case Pass::kBackwardInput:
        return backward_input;
      case Pass::kBackwardWeights:
        break;
    }
    return backward_weights;
  }
};

// A value that one segment's pass hands to its neighbour's: the sending segment, the direction,
// and the micro-batch.
struct Message {
  int segment = 0;  // of the whole model
  bool forward = true;
  int micro_batch = 0;

  auto operator<=>(const Message&) const = default;
};

struct Edges {
  std::optional<Message> receives;  // before the pass
  std::optional<Message> sends;     // after it
};

Edges EdgesOf(const PipelineShape& shape, int stage, const PipelineAction& action) {
  const int segment = action.segment * shape.stages + stage;
  const int last = shape.stages * shape.virtual_stages - 1;
  Edges edges;
  if (action.pass == Pass::kForward) {
    if (segment > 0) edges.receives = Message{segment - 1, true, action.micro_batch};
    if (segment < last) edges.sends = Message{segment, true, action.micro_batch};
  } else if (action.pass != Pass::kBackwardWeights) {
    if (segment < last) edges.receives = Message{segment + 1, false, action.micro_batch};
    if (segment > 0) edges.sends = Message{segment, false, action.micro_batch};
  }
  return edges;
}

struct Finish {
  bool completed = false;  // false: a deadlock
  std::vector<int> idle;   // of each stage, up to the end of the last stage
};

// Runs the lists with unbounded channels and messages that take no time.
Finish Simulate(const PipelineShape& shape, const Lists& lists, const Durations& durations) {
  std::map<Message, int> sent_at;
  std::vector<std::size_t> next(lists.size(), 0);
  std::vector<int> now(lists.size(), 0);
  std::vector<int> busy(lists.size(), 0);
  bool moved = true;
  while (moved) {
    moved = false;
    for (std::size_t stage = 0; stage < lists.size(); ++stage) {
      while (next[stage] < lists[stage].size()) {
        const PipelineAction& action = lists[stage][next[stage]];
        const Edges edges = EdgesOf(shape, static_cast<int>(stage), action);
        int start = now[stage];
        if (edges.receives) {
          const auto message = sent_at.find(*edges.receives);
          if (message == sent_at.end()) break;
          start = std::max(start, message->second);
        }
        now[stage] = start + durations.Of(action.pass);
        busy[stage] += durations.Of(action.pass);
        if (edges.sends) sent_at[*edges.sends] = now[stage];
        ++next[stage];
        moved = true;
      }
    }
  }
  Finish finish{.completed = true};
  const int end = *std::max_element(now.begin(), now.end());
  for (std::size_t stage = 0; stage < lists.size(); ++stage) {
    finish.completed = finish.completed && next[stage] == lists[stage].size();
    finish.idle.push_back(end - busy[stage]);
  }
  return finish;
}

// Runs the lists where every edge holds one message: a sender waits until the one before was
// taken. Says whether all lists end.
bool EndsWithChannelsOfOne(const PipelineShape& shape, const Lists& lists) {
  std::map<std::pair<int, bool>, Message> channels;  // by sending segment and direction
  std::vector<std::size_t> next(lists.size(), 0);
  std::vector<std::optional<Message>> unsent(lists.size());
  bool moved = true;
  while (moved) {
    moved = false;
    for (std::size_t stage = 0; stage < lists.size(); ++stage) {
      if (unsent[stage]) {
        const std::pair<int, bool> channel{unsent[stage]->segment, unsent[stage]->forward};
        if (channels.count(channel) > 0) continue;
        channels[channel] = *unsent[stage];
        unsent[stage].reset();
        moved = true;
      }
      if (next[stage] == lists[stage].size()) continue;
      const Edges edges = EdgesOf(shape, static_cast<int>(stage), lists[stage][next[stage]]);
      if (edges.receives) {
        const auto channel = channels.find({edges.receives->segment, edges.receives->forward});
        if (channel == channels.end()) continue;
        if (channel->second != *edges.receives) return false;  // out of order
        channels.erase(channel);
      }
      unsent[stage] = edges.sends;
      ++next[stage];
      moved = true;
    }
  }
  for (std::size_t stage = 0; stage < lists.size(); ++stage) {
    if (next[stage] < lists[stage].size() || unsent[stage]) return false;
  }
  return channels.empty();
}

class PipelineScheduleTest : public ::testing::TestWithParam<PipelineShape> {};

TEST_P(PipelineScheduleTest, IsAValidShape) {
  EXPECT_TRUE(CheckPipelineShape(GetParam()).ok()) << CheckPipelineShape(GetParam());
}

TEST_P(PipelineScheduleTest, EverySegmentAndMicroBatchPassesExactlyOnce) {
  const PipelineShape& shape = GetParam();
  for (int stage = 0; stage < shape.stages; ++stage) {
    std::map<std::tuple<int, int, Pass>, int> times;
    for (const PipelineAction& action : PipelineActions(shape, stage)) {
      ASSERT_GE(action.segment, 0);
      ASSERT_LT(action.segment, shape.virtual_stages);
      ASSERT_GE(action.micro_batch, 0);
      ASSERT_LT(action.micro_batch, shape.micro_batches);
      ++times[{action.segment, action.micro_batch, action.pass}];
    }
    for (int segment = 0; segment < shape.virtual_stages; ++segment) {
      for (int m = 0; m < shape.micro_batches; ++m) {
        const auto count = [&](Pass pass) { return times[{segment, m, pass}]; };
        EXPECT_EQ(count(Pass::kForward), 1);
        EXPECT_EQ(count(Pass::kBackward) + count(Pass::kBackwardInput), 1);
        EXPECT_EQ(count(Pass::kBackwardWeights), count(Pass::kBackwardInput));
      }
    }
  }
}

TEST_P(PipelineScheduleTest, PassesOfAMicroBatchFollowEachOther) {
  const PipelineShape& shape = GetParam();
  for (int stage = 0; stage < shape.stages; ++stage) {
    std::map<std::pair<int, int>, int> done;  // 1: forward, 2: backward of the input
    for (const PipelineAction& action : PipelineActions(shape, stage)) {
      int& state = done[{action.segment, action.micro_batch}];
      const int needs = action.pass == Pass::kForward           ? 0
                        : action.pass == Pass::kBackwardWeights ? 2
                                                                : 1;
      ASSERT_EQ(state, needs) << "stage " << stage << ", micro-batch " << action.micro_batch;
      ++state;
    }
  }
}

TEST_P(PipelineScheduleTest, EveryEdgeIsReceivedInTheOrderInWhichItIsSent) {
  const PipelineShape& shape = GetParam();
  std::map<std::pair<int, bool>, std::vector<int>> sent;
  std::map<std::pair<int, bool>, std::vector<int>> received;
  for (int stage = 0; stage < shape.stages; ++stage) {
    for (const PipelineAction& action : PipelineActions(shape, stage)) {
      const Edges edges = EdgesOf(shape, stage, action);
      if (edges.sends) {
        sent[{edges.sends->segment, edges.sends->forward}].push_back(edges.sends->micro_batch);
      }
      if (edges.receives) {
        received[{edges.receives->segment, edges.receives->forward}].push_back(
            edges.receives->micro_batch);
      }
    }
  }
  EXPECT_EQ(sent, received);
}

TEST_P(PipelineScheduleTest, NeverDeadlocksWithAnyRoomBetweenStages) {
  const PipelineShape& shape = GetParam();
  const Lists lists = ListsOf(shape);
  EXPECT_TRUE(Simulate(shape, lists, {3, 2, 1}).completed);
  EXPECT_TRUE(Simulate(shape, lists, {1, 5, 7}).completed);
  EXPECT_TRUE(EndsWithChannelsOfOne(shape, lists));
}

// With the times of a pass alike on all stages, the bubble is that of the papers. F, B and W are
// the times of a whole stage, B that of both gradients.
TEST_P(PipelineScheduleTest, IdlesAsLongAsTheFormulaSays) {
  const PipelineShape& shape = GetParam();
  // The formulas are those of a pipeline that is full for a while.
  if (shape.micro_batches < 2 * shape.stages) return;
  const Durations durations{.forward = 6, .backward_input = 6, .backward_weights = 5};
  const Finish finish = Simulate(shape, ListsOf(shape), durations);
  const int round = durations.forward + durations.Of(Pass::kBackward);
  int bubble = (shape.stages - 1) * round;
  if (shape.schedule == "zero-bubble") {
    bubble = (shape.stages - 1) * (round - 2 * durations.backward_weights);
  }
  // A segment takes 1 / V of a stage, so this is (P - 1) * (F + B) / V of the stage's times.
  for (const int idle : finish.idle) EXPECT_EQ(idle, bubble);
}

TEST_P(PipelineScheduleTest, ActivationSlotsAreNeverReusedTooEarly) {
  const PipelineShape& shape = GetParam();
  for (int stage = 0; stage < shape.stages; ++stage) {
    const std::vector<PipelineAction> actions = PipelineActions(shape, stage);
    const int slots = ActivationSlots(actions);
    std::map<std::pair<int, int>, int> holder;  // by segment and slot: the micro-batch
    for (const PipelineAction& action : actions) {
      const std::pair<int, int> slot{action.segment, action.micro_batch % slots};
      if (action.pass == Pass::kForward) {
        ASSERT_EQ(holder.count(slot), 0u) << "stage " << stage << " of " << slots << " slots";
        holder[slot] = action.micro_batch;
      } else if (action.pass != Pass::kBackwardInput) {
        holder.erase(slot);
      }
    }
  }
}

std::vector<PipelineShape> Shapes() {
  std::vector<PipelineShape> shapes;
  for (const int stages : {1, 2, 3, 4, 8, 16}) {
    for (const int micro_batches : {1, 2, 3, 8, 17, 32, 64}) {
      shapes.push_back({"1f1b", stages, 1, micro_batches});
      shapes.push_back({"zero-bubble", stages, 1, micro_batches});
    }
    if (stages == 1) continue;
    for (const int segments : {2, 3, 4}) {
      for (const int rounds : {1, 2, 5}) {
        shapes.push_back({"interleaved", stages, segments, rounds * stages});
      }
    }
  }
  return shapes;
}

INSTANTIATE_TEST_SUITE_P(Shapes, PipelineScheduleTest, ::testing::ValuesIn(Shapes()));

// Qi et al. 2023, arXiv:2401.10241: ZB-H1 needs 1f1b's memory, that of its first stage, P
// micro-batches; 1f1b needs less of it on later stages.
TEST(PipelineSlotsTest, FollowTheSchedule) {
  const int stages = 4;
  for (int stage = 0; stage < stages; ++stage) {
    EXPECT_EQ(ActivationSlots(PipelineActions({"1f1b", stages, 1, 32}, stage)), stages - stage);
    EXPECT_EQ(ActivationSlots(PipelineActions({"zero-bubble", stages, 1, 32}, stage)), stages);
  }
  EXPECT_EQ(ActivationSlots(PipelineActions({"1f1b", stages, 1, 2}, 0)), 2);
}

// What the planner counts on: it looks at no more of a long step.
TEST(PipelineSlotsTest, FourTimesTheStagesHaveAsManyInFlightAsAnyLongerStep) {
  for (PipelineShape shape : Shapes()) {
    shape.micro_batches = 4 * shape.stages;
    for (int stage = 0; stage < shape.stages; ++stage) {
      const int slots = ActivationSlots(PipelineActions(shape, stage));
      for (const int times : {2, 3, 5}) {
        PipelineShape longer = shape;
        longer.micro_batches *= times;
        EXPECT_EQ(ActivationSlots(PipelineActions(longer, stage)), slots);
      }
    }
  }
}

TEST(PipelineShapeTest, WrongNumbersAreNamed) {
  EXPECT_THAT(std::string(CheckPipelineShape({"gpipe", 2, 1, 4}).message()),
              HasSubstr("schedule \"gpipe\": must be"));
  EXPECT_THAT(std::string(CheckPipelineShape({"1f1b", 2, 2, 4}).message()),
              HasSubstr("virtual_stages = 2"));
  EXPECT_THAT(std::string(CheckPipelineShape({"interleaved", 1, 2, 4}).message()),
              testing::HasSubstr("at least 2 stages"));
  EXPECT_THAT(std::string(CheckPipelineShape({"interleaved", 2, 1, 4}).message()),
              HasSubstr("at least 2 segments"));
  EXPECT_THAT(std::string(CheckPipelineShape({"interleaved", 2, 2, 5}).message()),
              HasSubstr("micro-batches a rank (5)"));
}

}  // namespace
}  // namespace paceline
