#include "launch/cli/calibration.h"

#include <cmath>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline::cli {
namespace {

using ::testing::HasSubstr;

RunFile TinyRun() {
  RunFile run_file;
  run_file.model.vocab_size = 64;
  run_file.model.hidden_size = 32;
  run_file.model.num_hidden_layers = 6;
  run_file.model.num_attention_heads = 2;
  run_file.model.num_key_value_heads = 1;
  run_file.model.head_dim = 16;
  run_file.model.intermediate_size = 64;
  run_file.model.n_routed_experts = 4;
  run_file.model.num_experts_per_tok = 2;
  run_file.model.moe_intermediate_size = 16;
  run_file.model.first_k_dense_replace = 2;
  run_file.train.sequence_length = 32;
  run_file.train.micro_batch_size = 2;
  return run_file;
}

TEST(CalibrationTest, TheShapeMeasuredIsAnotherThanTheRuns) {
  const CalibrationShape shape = CalibrationShapeFor(TinyRun());
  EXPECT_EQ(shape.model.num_hidden_layers, 2);
  EXPECT_FALSE(shape.model.IsSparse(0));
  EXPECT_TRUE(shape.model.IsSparse(1));
  EXPECT_EQ(shape.batch.sequence, 16);
  EXPECT_EQ(shape.batch.rows, 4);
}

TEST(CalibrationTest, EveryRateIsANumberAboveZero) {
  const absl::StatusOr<planning::CostRates> rates = Calibrate(CalibrationShapeFor(TinyRun()), 2);
  ASSERT_TRUE(rates.ok()) << rates.status();
  for (const double rate :
       {rates->matrix_flops, rates->expert_flops, rates->head_flops, rates->attention_forward_flops,
        rates->attention_backward_flops, rates->memory_bytes, rates->accumulation_bytes,
        rates->optimizer_bytes, rates->inside_node.bytes_per_s, rates->inside_node.latency_s,
        rates->exchange_inside_node.bytes_per_s, rates->exchange_inside_node.latency_s}) {
    EXPECT_TRUE(std::isfinite(rate) && rate > 0) << rate;
  }
}

TEST(CalibrationTest, WhatTakesLongerThanSecondsIsRefused) {
  RunFile run_file = TinyRun();
  run_file.model.hidden_size = 8192;
  run_file.model.vocab_size = 100'000;
  const absl::Status refused = Calibrate(CalibrationShapeFor(run_file), 1).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("too many to measure in seconds"));
}

}  // namespace
}  // namespace paceline::cli
