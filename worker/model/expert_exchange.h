// How a sparse layer's rows travel between the ranks of an expert group, each of which holds an
// equal share of the experts in rank order. A rank sorts its tokens' rows by expert, which groups
// them by the rank that holds it, and sends each its part; what arrives, by source rank, is put
// in the order of experts, then source ranks, then tokens. The experts' outputs go back the same
// way, and so do gradients.
//
//   rows by expert --dispatch--> by source --reorder--> by local expert --> products
//   rows by expert <--return---- by source <--reorder-- by local expert <-- products
//
// However many rows a rank gets there is room for them: none is dropped, none is padded.
// Invariant: the order of a rank's rows depends on the routing alone, never on timing.
// Threading: belongs to the step thread. Rows travel on the communication stream; between a Start
// and its Finish the compute stream is free for other work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/status.h"
#include "worker/collectives/communicator.h"
#include "worker/kernels/stream.h"
#include "worker/model/layer.h"

namespace paceline {

// Who takes part and on which stream; one for all sparse layers of a model. Set before the first
// pass.
struct ExpertTransport {
  Communicator* communicator = nullptr;
  Stream* communication = nullptr;
  Event computed;           // what is to be sent lies ready
  Event exchanged;          // what was to arrive has
  double wait_seconds = 0;  // for which an inline compute stream waited for it
};

class ExpertExchange {
 public:
  // Rows that a rank of a layer's expert group can get at most: all its ranks' tokens, each of
  // which chooses an expert once.
  static std::int64_t RowsMax(const LayerContext& context);

  ExpertExchange(const LayerContext& context, ExpertTransport& group);

  // offsets: where each expert's rows begin, (n_routed_experts + 1). Tells the other ranks how many
  // come, for the dispatches and returns of one micro-batch's forward and backward.
  void StartCounts(const std::int32_t* offsets);
  // rows: (assignments, hidden), sorted by expert of the whole layer: what goes into the experts,
  // or the gradient of what StartReturn returned.
  void StartDispatch(const float* rows);
  // local: (local_offsets()[experts], hidden), the rows of this rank's experts.
  void FinishDispatch(float* local);

  // Sends what belongs to each row back to where it came from: rows as in StartDispatch.
  void StartReturn(const float* local, float* rows);
  void FinishReturn();

  // Where the rows of each of this rank's experts begin, (experts + 1); from FinishDispatch on,
  // when the compute stream gets there.
  const std::int32_t* local_offsets() const { return local_offsets_; }

 private:
  // From the counts of both sides, where everything lies. kInternal: more than can be.
  absl::Status Plan(const std::int32_t* offsets);
  // What follows on the compute stream finds what was exchanged, or does not run.
  void AwaitExchange();
  std::size_t ranks() const { return arrived_counts_.size(); }

  Stream& stream_;
  ExpertTransport& group_;
  const std::int64_t hidden_;
  const std::int64_t experts_;  // of this rank
  const std::int64_t rows_max_;

  // By (rank, that rank's or this rank's expert).
  std::int32_t* const counts_to_send_;
  std::int32_t* const block_rows_;     // rows that come
  std::int32_t* const arrival_start_;  // where they lie on arrival
  std::int32_t* const sorted_start_;   // where they lie in the order of experts
  std::int32_t* const local_offsets_;
  float* const arrived_;  // (rows_max, hidden), by source rank

  // By rank, in elements, as AllToAll wants them.
  std::vector<std::size_t> expert_counts_;
  std::vector<std::size_t> expert_starts_;
  std::vector<std::size_t> sent_counts_;
  std::vector<std::size_t> sent_starts_;
  std::vector<std::size_t> arrived_counts_;
  std::vector<std::size_t> arrived_starts_;
};

}  // namespace paceline
