#include "worker/model/expert_exchange.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "worker/kernels/dispatch.h"

namespace paceline {
namespace {

std::int64_t RanksOf(const LayerContext& context) {
  return context.section.n_routed_experts / (context.end_expert - context.first_expert);
}

}  // namespace

std::int64_t ExpertExchange::RowsMax(const LayerContext& context) {
  const std::int64_t experts = context.end_expert - context.first_expert;
  return RanksOf(context) * context.tokens_max() *
         std::min(context.section.num_experts_per_tok, experts);
}

ExpertExchange::ExpertExchange(const LayerContext& context, ExpertTransport& group)
    : stream_(context.stream),
      group_(group),
      hidden_(context.section.hidden_size),
      experts_(context.end_expert - context.first_expert),
      rows_max_(RowsMax(context)),
      counts_to_send_(context.saved.Allocate<std::int32_t>(context.section.n_routed_experts)),
      block_rows_(context.saved.Allocate<std::int32_t>(context.section.n_routed_experts)),
      arrival_start_(context.saved.Allocate<std::int32_t>(context.section.n_routed_experts)),
      sorted_start_(context.saved.Allocate<std::int32_t>(context.section.n_routed_experts)),
      local_offsets_(context.saved.Allocate<std::int32_t>(experts_ + 1)),
      arrived_(context.scratch.Allocate<float>(rows_max_ * hidden_)) {
  const auto ranks = static_cast<std::size_t>(RanksOf(context));
  const auto experts = static_cast<std::size_t>(experts_);
  expert_counts_.assign(ranks, experts);
  for (std::size_t rank = 0; rank < ranks; ++rank) expert_starts_.push_back(rank * experts);
  for (auto* array : {&sent_counts_, &sent_starts_, &arrived_counts_, &arrived_starts_}) {
    array->assign(ranks, 0);
  }
}

void ExpertExchange::StartCounts(const std::int32_t* offsets) {
  PACELINE_CHECK(group_.communicator != nullptr);
  stream_.Enqueue([this, offsets] {
    for (std::int64_t e = 0; e < experts_ * static_cast<std::int64_t>(ranks()); ++e) {
      counts_to_send_[e] = offsets[e + 1] - offsets[e];
    }
  });
  stream_.Record(group_.computed);
  group_.communication->Wait(group_.computed);
  group_.communicator->AllToAll(*group_.communication, "expert counts", counts_to_send_,
                                expert_counts_.data(), expert_starts_.data(), block_rows_,
                                expert_counts_.data(), expert_starts_.data(), DataType::kInt32);
  group_.communication->Enqueue([this, offsets] { return Plan(offsets); });
}

void ExpertExchange::StartDispatch(const float* rows) {
  stream_.Record(group_.computed);
  group_.communication->Wait(group_.computed);
  group_.communicator->AllToAll(*group_.communication, "expert dispatch", rows, sent_counts_.data(),
                                sent_starts_.data(), arrived_, arrived_counts_.data(),
                                arrived_starts_.data(), DataType::kFloat32);
  group_.communication->Record(group_.exchanged);
}

absl::Status ExpertExchange::Plan(const std::int32_t* offsets) {
  const auto ranks = static_cast<std::int64_t>(this->ranks());
  std::int64_t rows = 0;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    sent_starts_[r] = static_cast<std::size_t>(offsets[rank * experts_] * hidden_);
    sent_counts_[r] =
        static_cast<std::size_t>(offsets[(rank + 1) * experts_] * hidden_) - sent_starts_[r];
    const std::int64_t first = rows;
    for (std::int64_t block = rank * experts_; block < (rank + 1) * experts_; ++block) {
      arrival_start_[block] = static_cast<std::int32_t>(rows);
      rows += block_rows_[block];
      if (block_rows_[block] < 0 || rows > rows_max_) {
        return absl::InternalError(absl::StrCat(
            "rank ", rank, " of the expert group sends ", block_rows_[block], " rows, ", rows,
            " in all, of at most ", rows_max_, ": its model or batch is another one"));
      }
    }
    arrived_starts_[r] = static_cast<std::size_t>(first * hidden_);
    arrived_counts_[r] = static_cast<std::size_t>((rows - first) * hidden_);
  }
  std::int32_t start = 0;
  for (std::int64_t expert = 0; expert < experts_; ++expert) {
    local_offsets_[expert] = start;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      sorted_start_[rank * experts_ + expert] = start;
      start += block_rows_[rank * experts_ + expert];
    }
  }
  local_offsets_[experts_] = start;
  return absl::OkStatus();
}

void ExpertExchange::AwaitExchange() {
  const auto begin = std::chrono::steady_clock::now();
  stream_.Wait(group_.exchanged);
  group_.wait_seconds += SecondsBetween(begin, std::chrono::steady_clock::now());
  stream_.Enqueue([communication = group_.communication] { return communication->status(); });
}

void ExpertExchange::FinishDispatch(float* local) {
  AwaitExchange();
  kernels::MoveRowBlocks(stream_, local, sorted_start_, arrived_, arrival_start_, block_rows_,
                         experts_ * static_cast<std::int64_t>(ranks()), hidden_);
}

void ExpertExchange::StartReturn(const float* local, float* rows) {
  kernels::MoveRowBlocks(stream_, arrived_, arrival_start_, local, sorted_start_, block_rows_,
                         experts_ * static_cast<std::int64_t>(ranks()), hidden_);
  stream_.Record(group_.computed);
  group_.communication->Wait(group_.computed);
  group_.communicator->AllToAll(*group_.communication, "expert return", arrived_,
                                arrived_counts_.data(), arrived_starts_.data(), rows,
                                sent_counts_.data(), sent_starts_.data(), DataType::kFloat32);
  group_.communication->Record(group_.exchanged);
}

void ExpertExchange::FinishReturn() { AwaitExchange(); }

}  // namespace paceline
