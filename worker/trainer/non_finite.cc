#include "worker/trainer/non_finite.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

constexpr std::size_t kFindingBytes = 256;

int MicroBatchesOf(const std::vector<PipelineAction>& actions) {
  int micro_batches = 0;
  for (const PipelineAction& action : actions) {
    micro_batches = std::max(micro_batches, action.micro_batch + 1);
  }
  return micro_batches;
}

}  // namespace

absl::StatusOr<std::string> FindNonFinite(Model& model, PipelineExecutor& executor,
                                          const std::vector<PipelineAction>& actions,
                                          PassHandlers handlers, Stream& compute) {
  const std::vector<Parameter>& parameters = model.parameters();
  const std::string weight = FirstNonFinite(compute, parameters, model.weights(), 0,
                                            static_cast<std::int64_t>(model.weights().size()));
  std::string first = weight.empty() ? "" : absl::StrCat("weight ", weight, " is not finite");
  const auto found = [&first, of = MicroBatchesOf(actions)](int micro_batch,
                                                            const std::string& what) {
    if (!first.empty()) return;
    first = absl::StrCat("micro-batch ", micro_batch + 1, " of ", of, ": ", what, " is not finite");
  };
  handlers.loss = [&](int micro_batch, float loss) {
    if (!std::isfinite(loss)) found(micro_batch, "the loss");
  };
  handlers.accumulate = false;
  handlers.bucket_ready = [&](std::size_t index, int micro_batch) {
    const GradientBucket& bucket = model.buckets()[index];
    const std::string name =
        FirstNonFinite(compute, parameters, model.gradients(), bucket.offset, bucket.elements);
    if (!name.empty()) found(micro_batch, absl::StrCat("the gradient of ", name));
  };
  RETURN_IF_ERROR(executor.Run(actions, handlers));
  return first;
}

absl::StatusOr<std::string> FirstFinding(const std::string& own, Communicator& world,
                                         Stream& stream) {
  const auto ranks = static_cast<std::size_t>(world.size());
  std::vector<char> mine(kFindingBytes, '\0');
  std::vector<char> all(kFindingBytes * ranks, '\0');
  std::memcpy(mine.data(), own.data(), std::min(own.size(), kFindingBytes - 1));
  world.AllGather(stream, "non-finite report", mine.data(), all.data(), kFindingBytes,
                  DataType::kUint8);
  RETURN_IF_ERROR(stream.Synchronize());
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const char* text = all.data() + rank * kFindingBytes;
    if (*text != '\0') return absl::StrCat("rank ", rank, ", ", text);
  }
  return std::string();
}

}  // namespace paceline
