#include "worker/model/moe_layer.h"

#include "worker/kernels/dispatch.h"
#include "worker/kernels/elementwise.h"
#include "worker/kernels/gemm.h"
#include "worker/kernels/swiglu.h"

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
                   const float* balancing_bias, std::int64_t* expert_tokens)
    : stream_(context.stream),
      hidden_(context.section.hidden_size),
      intermediate_(context.section.moe_intermediate_size),
      experts_(context.section.n_routed_experts),
      top_k_(context.section.num_experts_per_tok),
      router_options_(RouterOptionsOf(context.section)),
      norm_(context, name + ".post_attention_layernorm.weight"),
      balancing_bias_(balancing_bias),
      expert_tokens_(expert_tokens) {
  const std::string mlp = name + ".mlp";
  ParameterLayout& parameters = context.parameters;
  router_ = parameters.Add(mlp + ".gate.weight", {experts_, hidden_});
  for (std::int64_t expert = 0; expert < experts_; ++expert) {
    const std::string prefix = mlp + ".experts." + std::to_string(expert);
    const Weight gate = parameters.Add(prefix + ".gate_proj.weight", {intermediate_, hidden_});
    parameters.Add(prefix + ".up_proj.weight", {intermediate_, hidden_});
    if (expert == 0) gate_up_weights_ = gate;
  }
  for (std::int64_t expert = 0; expert < experts_; ++expert) {
    const Weight down = parameters.Add(
        mlp + ".experts." + std::to_string(expert) + ".down_proj.weight", {hidden_, intermediate_});
    if (expert == 0) down_weights_ = down;
  }
  if (context.section.n_shared_experts > 0) {
    shared_.emplace(context, mlp + ".shared_experts",
                    context.section.n_shared_experts * intermediate_);
  }

  const std::int64_t tokens = context.tokens_max();
  const std::int64_t assignments = tokens * top_k_;
  Arena& saved = context.saved;
  scores_ = saved.Allocate<float>(tokens * experts_);
  weights_ = saved.Allocate<float>(assignments);
  expert_ = saved.Allocate<std::int32_t>(assignments);
  offsets_ = saved.Allocate<std::int32_t>(experts_ + 1);
  row_ = saved.Allocate<std::int32_t>(assignments);
  assignment_ = saved.Allocate<std::int32_t>(assignments);
  gathered_ = saved.Allocate<float>(assignments * hidden_);
  gate_up_ = saved.Allocate<float>(assignments * 2 * intermediate_);
  activated_ = saved.Allocate<float>(assignments * intermediate_);
  expert_out_ = saved.Allocate<float>(assignments * hidden_);
  if (context.training) {
    gradient_weights_ = context.scratch.Allocate<float>(assignments);
    gradient_logits_ = context.scratch.Allocate<float>(tokens * experts_);
    gradient_activated_ = context.scratch.Allocate<float>(assignments * intermediate_);
    gradient_normed_ = context.scratch.Allocate<float>(tokens * hidden_);
  }
}

void MoeLayer::Forward(const BatchShape& shape, const float* input, float* output) {
  const std::int64_t tokens = shape.tokens();
  const std::int64_t assignments = tokens * top_k_;
  norm_.Forward(tokens, input);
  RouteForward(tokens);
  kernels::GatherRows(stream_, gathered_, norm_.normed(), assignment_, tokens, top_k_, hidden_);
  kernels::GroupedGemmOptions options{.experts = router_options_.experts, .transpose_b = true};
  kernels::GroupedGemm(stream_, gate_up_, gathered_, gate_up_weights_.value, offsets_,
                       2 * intermediate_, hidden_, 2 * intermediate_ * hidden_, options);
  kernels::SwigluForward(stream_, activated_, gate_up_, gate_up_ + intermediate_, assignments,
                         intermediate_, 2 * intermediate_);
  kernels::GroupedGemm(stream_, expert_out_, activated_, down_weights_.value, offsets_, hidden_,
                       intermediate_, hidden_ * intermediate_, options);
  kernels::Copy(stream_, output, input, tokens * hidden_);
  if (shared_) shared_->Forward(tokens, norm_.normed(), output);
  kernels::CombineForward(stream_, output, expert_out_, row_, weights_, output, tokens, top_k_,
                          hidden_);
}

void MoeLayer::RouteForward(std::int64_t tokens) {
  kernels::Gemm(stream_, scores_, norm_.normed(), router_.value, tokens, experts_, hidden_,
                {.transpose_b = true});
  kernels::RouterForward(stream_, scores_, expert_, weights_, scores_, balancing_bias_, tokens,
                         router_options_);
  kernels::SortByExpert(stream_, offsets_, row_, assignment_, expert_, tokens * top_k_, experts_);
  kernels::CountExpertTokens(stream_, expert_tokens_, offsets_, experts_);
}

void MoeLayer::Backward(const BatchShape& shape, const float* input, float* gradient,
                        bool accumulate) {
  const std::int64_t tokens = shape.tokens();
  ExpertsBackward(tokens, gradient, accumulate);
  RouteBackward(tokens, accumulate);
  if (shared_) {
    shared_->Backward(tokens, norm_.normed(), gradient, gradient_normed_, /*beta=*/1.0f,
                      accumulate);
  }
  kernels::GatherRowsBackward(stream_, gradient_normed_, expert_out_, row_, gradient_normed_,
                              tokens, top_k_, hidden_);
  norm_.Backward(tokens, input, gradient_normed_, gradient, accumulate);
}

// Leaves the gradient of gathered_ in expert_out_ and that of weights_ in gradient_weights_.
void MoeLayer::ExpertsBackward(std::int64_t tokens, const float* gradient, bool accumulate) {
  kernels::GroupedGemmOptions options{.experts = router_options_.experts};
  kernels::GroupedGemmOptions weight_options = options;
  weight_options.beta = accumulate ? 1.0f : 0.0f;
  kernels::CombineBackward(stream_, expert_out_, gradient_weights_, gradient, expert_out_, row_,
                           weights_, tokens, top_k_, hidden_);
  kernels::GroupedGemmWeights(stream_, down_weights_.gradient, expert_out_, activated_, offsets_,
                              hidden_, intermediate_, hidden_ * intermediate_, weight_options);
  kernels::GroupedGemm(stream_, gradient_activated_, expert_out_, down_weights_.value, offsets_,
                       intermediate_, hidden_, hidden_ * intermediate_, options);
  kernels::SwigluBackward(stream_, gate_up_, gate_up_ + intermediate_, gradient_activated_,
                          gate_up_, gate_up_ + intermediate_, tokens * top_k_, intermediate_,
                          2 * intermediate_);
  kernels::GroupedGemmWeights(stream_, gate_up_weights_.gradient, gate_up_, gathered_, offsets_,
                              2 * intermediate_, hidden_, 2 * intermediate_ * hidden_,
                              weight_options);
  kernels::GroupedGemm(stream_, expert_out_, gate_up_, gate_up_weights_.value, offsets_, hidden_,
                       2 * intermediate_, 2 * intermediate_ * hidden_, options);
}

// gradient_normed_ = what reaches norm's output through the router.
void MoeLayer::RouteBackward(std::int64_t tokens, bool accumulate) {
  kernels::RouterBackward(stream_, gradient_logits_, gradient_weights_, scores_, expert_, tokens,
                          router_options_);
  kernels::Gemm(stream_, router_.gradient, gradient_logits_, norm_.normed(), experts_, hidden_,
                tokens, {.transpose_a = true, .beta = accumulate ? 1.0f : 0.0f});
  kernels::Gemm(stream_, gradient_normed_, gradient_logits_, router_.value, tokens, hidden_,
                experts_);
}

}  // namespace paceline
