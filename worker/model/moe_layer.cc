#include "worker/model/moe_layer.h"

#include "worker/kernels/dispatch.h"
#include "worker/kernels/elementwise.h"
#include "worker/kernels/gemm.h"

namespace paceline {
namespace {

kernels::RouterOptions RouterOptionsOf(const ModelSection& section) {
  return {
      .experts = static_cast<std::int32_t>(section.n_routed_experts),
      .top_k = static_cast<std::int32_t>(section.num_experts_per_tok),
      .score = section.scoring_func == "sigmoid" ? kernels::GateScore::kSigmoid
                                                 : kernels::GateScore::kSoftmax,
      .norm_topk_prob = section.norm_topk_prob,
      .routed_scaling_factor = static_cast<float>(section.routed_scaling_factor),
  };
}

}  // namespace

MoeLayer::MoeLayer(const LayerContext& context, const std::string& name,
                   const float* balancing_bias, std::int64_t* expert_tokens, ExpertTransport& group)
    : stream_(context.stream),
      hidden_(context.section.hidden_size),
      expert_count_(context.section.n_routed_experts),
      top_k_(context.section.num_experts_per_tok),
      router_options_(RouterOptionsOf(context.section)),
      norm_(context, name + ".post_attention_layernorm.weight"),
      router_(context.parameters.Add(name + ".mlp.gate.weight", {expert_count_, hidden_})),
      experts_(context, name + ".mlp", ExpertExchange::RowsMax(context)),
      balancing_bias_(balancing_bias),
      expert_tokens_(expert_tokens) {
  if (context.section.n_shared_experts > 0) {
    shared_.emplace(context, name + ".mlp.shared_experts",
                    context.section.n_shared_experts * context.section.moe_intermediate_size);
  }
  if (context.end_expert - context.first_expert < expert_count_) exchange_.emplace(context, group);
  AllocateBuffers(context);
}

void MoeLayer::AllocateBuffers(const LayerContext& context) {
  const std::int64_t tokens = context.tokens_max();
  const std::int64_t assignments = tokens * top_k_;
  Arena& saved = context.saved;
  scores_ = saved.Allocate<float>(tokens * expert_count_);
  weights_ = saved.Allocate<float>(assignments);
  expert_ = saved.Allocate<std::int32_t>(assignments);
  offsets_ = saved.Allocate<std::int32_t>(expert_count_ + 1);
  row_ = saved.Allocate<std::int32_t>(assignments);
  assignment_ = saved.Allocate<std::int32_t>(assignments);
  // Once sent, the rows are needed where the experts are.
  gathered_ = (exchange_ ? context.scratch : saved).Allocate<float>(assignments * hidden_);
  expert_out_ = saved.Allocate<float>(assignments * hidden_);
  if (context.training) {
    gradient_weights_ = context.scratch.Allocate<float>(assignments);
    gradient_gathered_ = context.scratch.Allocate<float>(assignments * hidden_);
    gradient_logits_ = context.between.Allocate<float>(tokens * expert_count_);
    gradient_normed_ = context.between.Allocate<float>(tokens * hidden_);
  }
  if (!exchange_) {
    local_offsets_ = offsets_;
    local_in_ = gathered_;
    local_out_ = gradient_local_out_ = expert_out_;
    gradient_local_in_ = gradient_gathered_;
    return;
  }
  const std::int64_t local = ExpertExchange::RowsMax(context) * hidden_;
  local_offsets_ = exchange_->local_offsets();
  local_in_ = saved.Allocate<float>(local);
  // The outputs are sent before their gradients come.
  local_out_ = gradient_local_in_ = context.scratch.Allocate<float>(local);
  if (context.training) gradient_local_out_ = context.between.Allocate<float>(local);
}

void MoeLayer::Forward(const BatchShape& shape, const float* input, float* output) {
  const std::int64_t tokens = shape.tokens();
  norm_.Forward(tokens, input);
  RouteForward(tokens);
  if (exchange_) exchange_->StartCounts(offsets_);
  kernels::GatherRows(stream_, gathered_, norm_.normed(), assignment_, tokens, top_k_, hidden_);
  if (exchange_) exchange_->StartDispatch(gathered_);
  if (shared_) shared_->ForwardGateUp(tokens, norm_.normed());
  if (exchange_) exchange_->FinishDispatch(local_in_);
  experts_.Forward(local_offsets_, local_in_, local_out_);
  if (exchange_) exchange_->StartReturn(local_out_, expert_out_);
  kernels::Copy(stream_, output, input, tokens * hidden_);
  if (shared_) shared_->ForwardDown(tokens, output);
  if (exchange_) exchange_->FinishReturn();
  kernels::CombineForward(stream_, output, expert_out_, row_, weights_, output, tokens, top_k_,
                          hidden_);
}

void MoeLayer::RouteForward(std::int64_t tokens) {
  kernels::Gemm(stream_, scores_, norm_.normed(), router_.value, tokens, expert_count_, hidden_,
                {.transpose_b = true});
  kernels::RouterForward(stream_, scores_, expert_, weights_, scores_, balancing_bias_, tokens,
                         router_options_);
  kernels::SortByExpert(stream_, offsets_, row_, assignment_, expert_, tokens * top_k_,
                        expert_count_);
  kernels::CountExpertTokens(stream_, expert_tokens_, offsets_, expert_count_);
}

void MoeLayer::BackwardInput(const BatchShape& shape, const float* input,
                             const float* gradient_output, float* gradient_input) {
  BackwardThroughExperts(shape.tokens(), gradient_output);
  BackwardFromExperts(shape.tokens(), input, gradient_output, gradient_input);
}

void MoeLayer::BackwardWeights(const BatchShape& shape, const float* input,
                               const float* gradient_output, bool accumulate) {
  BackwardProductWeights(shape.tokens(), gradient_output, accumulate);
  norm_.BackwardWeights(shape.tokens(), input, gradient_normed_, accumulate);
}

// As the two passes, but the products have their turn while gradients travel.
void MoeLayer::Backward(const BatchShape& shape, const float* input, const float* gradient_output,
                        float* gradient_input, bool accumulate) {
  BackwardThroughExperts(shape.tokens(), gradient_output);
  BackwardProductWeights(shape.tokens(), gradient_output, accumulate);
  BackwardFromExperts(shape.tokens(), input, gradient_output, gradient_input);
  norm_.BackwardWeights(shape.tokens(), input, gradient_normed_, accumulate);
}

void MoeLayer::BackwardThroughExperts(std::int64_t tokens, const float* gradient_output) {
  kernels::CombineBackward(stream_, expert_out_, gradient_weights_, gradient_output, expert_out_,
                           row_, weights_, tokens, top_k_, hidden_);
  if (exchange_) exchange_->StartDispatch(expert_out_);
  RouteBackward(tokens);
  if (shared_) shared_->BackwardDown(tokens, gradient_output);
  if (exchange_) exchange_->FinishDispatch(gradient_local_out_);
  experts_.BackwardInput(local_offsets_, gradient_local_out_, gradient_local_in_);
  if (exchange_) exchange_->StartReturn(gradient_local_in_, gradient_gathered_);
}

void MoeLayer::BackwardFromExperts(std::int64_t tokens, const float* input,
                                   const float* gradient_output, float* gradient_input) {
  if (shared_) shared_->BackwardGateUp(tokens, gradient_normed_, /*beta=*/1.0f);
  if (exchange_) exchange_->FinishReturn();
  kernels::GatherRowsBackward(stream_, gradient_normed_, gradient_gathered_, row_, gradient_normed_,
                              tokens, top_k_, hidden_);
  norm_.BackwardInput(tokens, input, gradient_normed_, gradient_output, gradient_input);
}

// gradient_normed_ = what reaches norm's output through the router.
void MoeLayer::RouteBackward(std::int64_t tokens) {
  kernels::RouterBackward(stream_, gradient_logits_, gradient_weights_, scores_, expert_, tokens,
                          router_options_);
  kernels::Gemm(stream_, gradient_normed_, gradient_logits_, router_.value, tokens, hidden_,
                expert_count_);
}

void MoeLayer::BackwardProductWeights(std::int64_t tokens, const float* gradient_output,
                                      bool accumulate) {
  experts_.BackwardWeights(local_offsets_, local_in_, gradient_local_out_, accumulate);
  kernels::Gemm(stream_, router_.gradient, gradient_logits_, norm_.normed(), expert_count_, hidden_,
                tokens, {.transpose_a = true, .beta = accumulate ? 1.0f : 0.0f});
  if (shared_) shared_->BackwardWeights(tokens, norm_.normed(), gradient_output, accumulate);
}

}  // namespace paceline
