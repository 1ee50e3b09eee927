#include "worker/model/routed_experts.h"

#include "absl/strings/str_cat.h"
#include "worker/kernels/gemm.h"
#include "worker/kernels/swiglu.h"

namespace paceline {

RoutedExperts::RoutedExperts(const LayerContext& context, const std::string& mlp,
                             std::int64_t rows_max)
    : stream_(context.stream),
      hidden_(context.section.hidden_size),
      intermediate_(context.section.moe_intermediate_size),
      experts_(static_cast<std::int32_t>(context.end_expert - context.first_expert)),
      gate_up_(context.saved.Allocate<float>(rows_max * 2 * intermediate_)),
      activated_(context.saved.Allocate<float>(rows_max * intermediate_)),
      gradient_activated_(
          context.training ? context.scratch.Allocate<float>(rows_max * intermediate_) : nullptr) {
  const auto add = [&](std::int64_t expert, const char* matrix, std::int64_t rows,
                       std::int64_t cols) {
    return context.parameters.Add(
        absl::StrCat(mlp, ".experts.", expert, ".", matrix, "_proj.weight"), {rows, cols},
        /*expert=*/true);
  };
  for (std::int64_t expert = context.first_expert; expert < context.end_expert; ++expert) {
    const Weight gate = add(expert, "gate", intermediate_, hidden_);
    add(expert, "up", intermediate_, hidden_);
    if (expert == context.first_expert) gate_up_weights_ = gate;
  }
  for (std::int64_t expert = context.first_expert; expert < context.end_expert; ++expert) {
    const Weight down = add(expert, "down", hidden_, intermediate_);
    if (expert == context.first_expert) down_weights_ = down;
  }
}

void RoutedExperts::Forward(const std::int32_t* offsets, const float* input, float* output) {
  const kernels::GroupedGemmOptions options{.experts = experts_, .transpose_b = true};
  kernels::GroupedGemm(stream_, gate_up_, input, gate_up_weights_.value, offsets, 2 * intermediate_,
                       hidden_, 2 * intermediate_ * hidden_, options);
  kernels::SwigluForward(stream_, activated_, gate_up_, gate_up_ + intermediate_,
                         offsets + experts_, intermediate_, 2 * intermediate_);
  kernels::GroupedGemm(stream_, output, activated_, down_weights_.value, offsets, hidden_,
                       intermediate_, hidden_ * intermediate_, options);
}

void RoutedExperts::BackwardInput(const std::int32_t* offsets, const float* gradient_output,
                                  float* gradient_input) {
  const kernels::GroupedGemmOptions options{.experts = experts_};
  kernels::GroupedGemm(stream_, gradient_activated_, gradient_output, down_weights_.value, offsets,
                       intermediate_, hidden_, hidden_ * intermediate_, options);
  kernels::SwigluBackward(stream_, gate_up_, gate_up_ + intermediate_, gradient_activated_,
                          gate_up_, gate_up_ + intermediate_, offsets + experts_, intermediate_,
                          2 * intermediate_);
  kernels::GroupedGemm(stream_, gradient_input, gate_up_, gate_up_weights_.value, offsets, hidden_,
                       2 * intermediate_, 2 * intermediate_ * hidden_, options);
}

void RoutedExperts::BackwardWeights(const std::int32_t* offsets, const float* input,
                                    const float* gradient_output, bool accumulate) {
  const kernels::GroupedGemmOptions options{.experts = experts_, .beta = accumulate ? 1.0f : 0.0f};
  kernels::GroupedGemmWeights(stream_, down_weights_.gradient, gradient_output, activated_, offsets,
                              hidden_, intermediate_, hidden_ * intermediate_, options);
  kernels::GroupedGemmWeights(stream_, gate_up_weights_.gradient, gate_up_, input, offsets,
                              2 * intermediate_, hidden_, 2 * intermediate_ * hidden_, options);
}

}  // namespace paceline
