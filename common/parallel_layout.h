// How a run is split over its ranks, and where each rank stands in it.
//   world size = pipeline * data,  data = expert_data * expert
// Expert-parallel ranks are neighbours (they meet inside a node where they fit), then the stages
// of one pipeline, then the data-parallel copies:
//   rank = (expert_data_index * pipeline + stage) * expert + expert_index
// Invariant: CoordinatesOf and RankAt are inverse to each other.
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/model_shape.h"
#include "common/run_file.h"
#include "common/status.h"

namespace paceline {

struct ParallelLayout {
  int pipeline = 1;
  int data = 1;                   // ranks that share one stage's work: a multiple of `expert`
  int expert = 1;                 // ranks that an expert layer is spread over
  int virtual_stages = 1;         // segments of the model that a rank holds
  std::string schedule = "1f1b";  // of [layout] schedule
  bool shard_optimizer = false;   // ZeRO-1

  int world_size() const { return pipeline * data; }
  int expert_data() const { return data / expert; }
};

// As the run file asks for it; `run_file` is valid.
ParallelLayout LayoutOf(const RunFile& run_file);

struct RankCoordinates {
  int stage = 0;
  int expert_data = 0;
  int expert = 0;
  int data = 0;  // expert_data * layout.expert + expert: which share of the batch
};

RankCoordinates CoordinatesOf(const ParallelLayout& layout, int rank);
int RankAt(const ParallelLayout& layout, int stage, int data);

// The micro-batches of a step that one share of the batch takes: `count` of them from `first` on,
// each `stride` behind the one before.
struct MicroBatchRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t stride = 1;

  std::int64_t At(std::int64_t i) const { return first + i * stride; }
};

// Whether the `total` micro-batches of a step can be spread over the shares of `layout`, evenly or
// not: ranks that share experts take as many as each other, an interleaved pipeline a multiple of
// its stages, and nobody none. kInvalidArgument: says what does not fit.
absl::Status CheckMicroBatches(const ParallelLayout& layout, std::int64_t total);

// Those of share `data`. Expert groups take as many as each other where that goes, otherwise the
// first ones more, and the groups' ranges follow each other. The ranks of a group take turns, so
// that the same micro-batches meet in an expert, in the same order, whatever the number of groups:
// that changes no sum. CheckMicroBatches holds.
MicroBatchRange MicroBatchesOf(const ParallelLayout& layout, int data, std::int64_t total);

// The ranks of `rank`'s groups, ascending.
std::vector<int> PipelineGroup(const ParallelLayout& layout, int rank);    // same data index
std::vector<int> DataGroup(const ParallelLayout& layout, int rank);        // same stage
std::vector<int> ExpertGroup(const ParallelLayout& layout, int rank);      // one expert layer
std::vector<int> ExpertDataGroup(const ParallelLayout& layout, int rank);  // same experts

// The layers of a model as `parts` ranges, first to last, each of at least one layer, such that
// the costliest range (FLOPs of a token, embedding and head counted) costs as little as possible;
// among those, the first found in ascending order. parts <= num_hidden_layers.
std::vector<LayerRange> SplitLayers(const ModelSection& model, std::int64_t sequence, int parts);

// What `rank` holds: segment v of stage s is range v * pipeline + s of SplitLayers.
ModelPart PartOf(const RunFile& run_file, const ParallelLayout& layout, int rank);

}  // namespace paceline
