#include "common/pipeline_schedule.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

// Forwards that run ahead fill the pipeline; then each forward is followed by the backward of the
// oldest micro-batch; then the backwards that are left.
std::vector<PipelineAction> OneForwardOneBackward(const PipelineShape& shape, int stage) {
  std::vector<PipelineAction> actions;
  const int ahead = std::min(shape.stages - 1 - stage, shape.micro_batches);
  for (int m = 0; m < shape.micro_batches + ahead; ++m) {
    if (m < shape.micro_batches) actions.push_back({Pass::kForward, 0, m});
    if (m >= ahead) actions.push_back({Pass::kBackward, 0, m - ahead});
  }
  return actions;
}

// As 1f1b, but stage s holds back its weight gradients by s micro-batches, so that every stage
// has as many micro-batches in flight as 1f1b's first stage, and the stages after it get their
// gradients sooner.
std::vector<PipelineAction> ZeroBubble(const PipelineShape& shape, int stage) {
  std::vector<PipelineAction> actions;
  const int ahead = std::min(shape.stages - 1 - stage, shape.micro_batches);
  for (int m = 0; m < shape.micro_batches + ahead; ++m) {
    if (m < shape.micro_batches) actions.push_back({Pass::kForward, 0, m});
    const int back = m - ahead;
    if (back < 0) continue;
    actions.push_back({Pass::kBackwardInput, 0, back});
    if (back >= stage) actions.push_back({Pass::kBackwardWeights, 0, back - stage});
  }
  for (int m = std::max(0, shape.micro_batches - stage); m < shape.micro_batches; ++m) {
    actions.push_back({Pass::kBackwardWeights, 0, m});
  }
  return actions;
}

// Micro-batches go in groups of `stages` through a stage's first segment, then through its second,
// and so on; backwards take the segments in the opposite order.
std::vector<PipelineAction> Interleaved(const PipelineShape& shape, int stage) {
  const int segments = shape.virtual_stages;
  const int passes = shape.micro_batches * segments;
  const auto pass = [&](Pass kind, int index) {
    const int group = index / (shape.stages * segments);
    const int within = index % (shape.stages * segments);
    const int nth = within / shape.stages;
    return PipelineAction{kind, kind == Pass::kForward ? nth : segments - 1 - nth,
                          group * shape.stages + within % shape.stages};
  };
  std::vector<PipelineAction> actions;
  const int ahead =
      std::min(2 * (shape.stages - 1 - stage) + (segments - 1) * shape.stages, passes);
  for (int i = 0; i < passes + ahead; ++i) {
    if (i < passes) actions.push_back(pass(Pass::kForward, i));
    if (i >= ahead) actions.push_back(pass(Pass::kBackward, i - ahead));
  }
  return actions;
}

bool UsesActivations(const PipelineAction& action) { return action.pass != Pass::kForward; }

}  // namespace

absl::Status CheckPipelineShape(const PipelineShape& shape) {
  const bool interleaved = shape.schedule == "interleaved";
  if (!interleaved && shape.schedule != "1f1b" && shape.schedule != "zero-bubble") {
    return absl::InvalidArgumentError(absl::StrCat(
        "schedule \"", shape.schedule, "\": must be \"1f1b\", \"interleaved\" or \"zero-bubble\""));
  }
  if (!interleaved && shape.virtual_stages != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("virtual_stages = ", shape.virtual_stages, ": schedule \"", shape.schedule,
                     "\" has one segment a stage; give 1, or schedule = \"interleaved\""));
  }
  if (!interleaved) return absl::OkStatus();
  if (shape.stages < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule \"interleaved\" needs at least 2 stages, not ", shape.stages));
  }
  if (shape.virtual_stages < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("virtual_stages = ", shape.virtual_stages,
                     ": schedule \"interleaved\" needs at least 2 segments a stage"));
  }
  if (shape.micro_batches % shape.stages != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule \"interleaved\" needs micro-batches a rank (", shape.micro_batches,
                     ") in a multiple of pipeline = ", shape.stages));
  }
  return absl::OkStatus();
}

std::vector<PipelineAction> PipelineActions(const PipelineShape& shape, int stage) {
  if (shape.schedule == "interleaved") return Interleaved(shape, stage);
  if (shape.schedule == "zero-bubble") return ZeroBubble(shape, stage);
  return OneForwardOneBackward(shape, stage);
}

int ActivationSlots(const std::vector<PipelineAction>& actions) {
  std::map<std::pair<int, int>, std::size_t> last_use;  // by segment and micro-batch
  for (std::size_t i = 0; i < actions.size(); ++i) {
    if (UsesActivations(actions[i])) last_use[{actions[i].segment, actions[i].micro_batch}] = i;
  }
  std::map<int, int> in_flight;  // by segment
  int most = 0;
  for (std::size_t i = 0; i < actions.size(); ++i) {
    const PipelineAction& action = actions[i];
    int& count = in_flight[action.segment];
    if (action.pass == Pass::kForward) most = std::max(most, ++count);
    const auto last = last_use.find({action.segment, action.micro_batch});
    if (last != last_use.end() && last->second == i) --count;
  }
  return most;
}

}  // namespace paceline
