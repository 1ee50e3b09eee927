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
