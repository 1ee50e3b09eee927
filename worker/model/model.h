// The model of one rank, the whole or a part of it: forward and backward of a micro-batch, every
// layer written out, no autograd. Memory comes from an arena sized at Create; the passes allocate
// nothing.
//
//   for each micro-batch { Forward; Backward }; reduce; AdamW on weights().
//
// A part consists of segments (ModelPart), numbered in ascending order of their layers. Each has
// `slots` places for micro-batches in flight; micro-batch m holds place m % slots from Forward to
// the last of its backward passes. Inputs have a place more, m % (slots + 1): the next one may
// arrive while all slots are taken. Between segments the caller carries activations and gradients:
//
//   upstream output --> input | Forward  | output --> downstream input
//   upstream gradient <-- gradient | Backward | gradient <-- downstream gradient
//
// Invariant: equal weights and equal micro-batches give equal bits in loss and gradients, in
// however many segments and slots.
// Threading: belongs to the step thread; kernels run on the compute stream given to Create.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/model_shape.h"
#include "common/run_file.h"
#include "common/status.h"
#include "worker/collectives/communicator.h"
#include "worker/kernels/stream.h"
#include "worker/model/parameters.h"

namespace paceline {

struct ModelOptions {
  std::int64_t micro_batch_size = 1;
  std::int64_t sequence_length = 0;
  bool training = true;  // false: no gradients, no saved activations
  ModelPart part = {};   // without segments: the whole model
  int slots = 1;         // micro-batches in flight in each segment
  // BackwardInput and BackwardWeights are there too, for which a slot keeps more.
  bool split_backward = false;
};

// tokens, targets: (micro_batch_size, sequence_length), row-major, every value in
// [0, vocab_size). Fewer rows or a shorter sequence than the options' are allowed. Only the
// segment with the embedding reads tokens, only the one with the head targets.
struct MicroBatch {
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> targets;
  std::int64_t rows = 0;
  std::int64_t sequence = 0;
};

// What a micro-batch shares with the caller: (rows * sequence, hidden_size) each. Places have their
// own, so the caller may still be sending from one while another computes.
struct SegmentBuffers {
  float* input = nullptr;     // written by the caller before Forward; null with the embedding
  float* output = nullptr;    // left by Forward; null with the head
  float* gradient = nullptr;  // before the backward that of the output (with the head: anything),
                              // after Backward or BackwardInput that of the input
};

struct ExpertLoad {
  double max_over_mean = 0;  // the most loaded expert's tokens over the mean; 0 without tokens
  std::int64_t dead = 0;     // experts without a token
};
// tokens: of each expert of one layer.
ExpertLoad ExpertLoadOf(std::span<const std::int64_t> tokens);

class Model {
 public:
  // kInvalidArgument names the field that does not fit. kResourceExhausted: not enough memory.
  // A part with a tied table must be one segment with embedding and head.
  static absl::StatusOr<std::unique_ptr<Model>> Create(const ModelSection& section,
                                                       const ModelOptions& options,
                                                       Stream& compute);
  virtual ~Model() = default;

  // Initial weights from the seed; norms are ones, balancing biases zero.
  virtual void Initialize(std::uint64_t seed) = 0;

  virtual const std::vector<Parameter>& parameters() const = 0;
  virtual std::span<StateBuffer> state_buffers() = 0;  // of the part's layers
  virtual std::span<float> weights() = 0;              // flat, parameters().offset into it
  virtual std::span<float> gradients() = 0;  // of the latest micro-batch (or summed, see below)
  // Ranges that cover the flat arrays, the last segment's first, and within a segment in the order
  // in which its backward completes them. None holds parameters of two segments or regions.
  virtual const std::vector<GradientBucket>& buckets() const = 0;

  // Sum over the micro-batch's tokens of the cross-entropy in nats, rounded once to float32 (so
  // that sums of a few of them in float64 are exact and do not depend on their order).
  // 0 where the segment has no head. Keeps the activations for the backward. Expert loads are
  // added to expert_tokens().
  virtual float Forward(const MicroBatch& batch, int segment = 0, int micro_batch = 0) = 0;

  // Gradients of loss_scale * (sum over the micro-batch), whose Forward was its slot's latest.
  // `accumulate`: add to the segment's part of gradients(), else overwrite it. Calls
  // bucket_ready(i) once bucket i of gradients() is complete on the compute stream, for the
  // segment's buckets in ascending order.
  virtual void Backward(float loss_scale, bool accumulate,
                        const std::function<void(std::size_t)>& bucket_ready, int segment = 0,
                        int micro_batch = 0) = 0;
  // The same in two passes, the second any time after the first. Gives the bits of Backward.
  virtual void BackwardInput(float loss_scale, int segment, int micro_batch) = 0;
  virtual void BackwardWeights(bool accumulate,
                               const std::function<void(std::size_t)>& bucket_ready, int segment,
                               int micro_batch) = 0;

  virtual SegmentBuffers buffers(int segment, int micro_batch) = 0;

  // Needed once, before the first pass, where the part has not all experts of its sparse layers:
  // rank r of the group has the r-th of group.size() equal shares of them, and all its ranks make
  // the same passes in the same order. Rows travel on `communication`; when that has failed the
  // compute stream fails with the same error. Expert gradients then are sums over the tokens of
  // the whole group.
  virtual void UseExpertGroup(Communicator& group, Stream& communication) = 0;
  // Total time for which the compute stream, where it runs inline, waited for such rows: for their
  // way, and for a rank that computes longer.
  virtual double expert_wait_seconds() const = 0;

  // logits: (rows * sequence, vocab_size) of `batch`; targets are not read. For generation; the
  // model is whole, in one segment.
  virtual void Logits(const MicroBatch& batch, std::span<float> logits) = 0;

  // Tokens each routed expert got since ResetExpertTokens: (sparse layers, n_routed_experts) of
  // the whole model, zero where a layer is not the part's. Summed over ranks by the trainer before
  // UpdateRouterBias.
  virtual std::span<std::int64_t> expert_tokens() = 0;
  virtual void ResetExpertTokens() = 0;
  // bias += rate * sign(mean load - load), by layer and expert, from expert_tokens().
  // Source: DeepSeek-V3 technical report, arXiv:2412.19437, section 2.1.2.
  virtual void UpdateRouterBias(float rate) = 0;

  virtual std::int64_t arena_bytes() const = 0;
};

}  // namespace paceline
