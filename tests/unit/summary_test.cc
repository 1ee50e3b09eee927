// summary.json: the final lineage, and what was lost beside it.
#include "coordinator/rpc/summary.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

TEST(SummaryTest, ItHoldsWhatTheRunCameTo) {
  v1::RunStatus status;
  status.set_run_id("run-1");
  status.set_state(v1::RUN_STATE_COMPLETED);
  status.set_generation(2);
  status.set_tokens(4'000'000);
  status.set_recoveries(1);
  status.set_lost_steps(3);
  status.set_lost_tokens(12'288);
  status.set_cost(0.1);
  status.set_currency("EUR");
  status.set_checkpoint("/runs/run-1/checkpoints/step-00000300");
  status.set_checkpoint_step(300);
  status.mutable_step()->set_step(300);
  status.mutable_step()->set_loss(1.0 / 3);
  status.mutable_eval()->set_step(290);
  status.mutable_eval()->set_valid_loss(0.5);
  for (const double seconds : {100.0, 50.0}) {
    status.add_ranks()->set_tokens(2'000'000);
    status.mutable_ranks(status.ranks_size() - 1)->set_step_seconds(seconds);
  }
  const auto summary = nlohmann::json::parse(SummaryJson(status, {}));
  EXPECT_EQ(summary["run_id"], "run-1");
  EXPECT_EQ(summary["state"], "completed");
  EXPECT_EQ(summary["steps"], 300);
  EXPECT_EQ(summary["tokens"], 4'000'000);
  EXPECT_EQ(summary["loss"].get<double>(), 1.0 / 3) << "the same bits";
  EXPECT_EQ(summary["valid_loss"], 0.5);
  EXPECT_EQ(summary["tokens_per_second"], 40'000.0);
  EXPECT_EQ(summary["generations"], 2);
  EXPECT_EQ(summary["recoveries"], 1);
  EXPECT_EQ(summary["lost_steps"], 3);
  EXPECT_EQ(summary["lost_tokens"], 12'288);
  EXPECT_EQ(summary["cost"], 0.1);
  EXPECT_EQ(summary["currency"], "EUR");
  EXPECT_EQ(summary["cost_per_million_tokens"], 0.025);
  EXPECT_EQ(summary["checkpoint"], "/runs/run-1/checkpoints/step-00000300");
}

TEST(SummaryTest, ARunWithoutAStepIsNullWhereThereIsNothing) {
  v1::RunStatus status;
  status.set_state(v1::RUN_STATE_FAILED);
  status.set_reason("bytes that are no text: \xff");
  const auto summary = nlohmann::json::parse(SummaryJson(status, {}));
  EXPECT_EQ(summary["state"], "failed");
  for (const char* key :
       {"loss", "valid_loss", "tokens_per_second", "cost_per_million_tokens", "checkpoint"}) {
    EXPECT_TRUE(summary[key].is_null()) << key;
  }
  status.set_checkpoint_step(1);
  status.mutable_step()->set_step(1);
  status.mutable_step()->set_loss(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(nlohmann::json::parse(SummaryJson(status, {}))["loss"].is_null());
}

// A run that failed at step 57, of which the coordinator had heard up to 55; step 50 is committed
// since an earlier generation got to 48 and began again from 40.
class FailedRunTest : public ::testing::Test {
 protected:
  FailedRunTest() {
    status_.set_run_dir(folder_.path().string());
    status_.set_state(v1::RUN_STATE_FAILED);
    status_.set_checkpoint_step(50);
    status_.set_tokens(50 * 1024);
    status_.set_lost_steps(7 + 5);
    status_.set_lost_tokens((7 + 5) * 1024);
    status_.mutable_step()->set_step(55);
    status_.mutable_step()->set_loss(5.5);
    status_.mutable_eval()->set_step(52);
    status_.mutable_eval()->set_valid_loss(5.2);
  }
  static std::string Line(int step, int generation) {
    return absl::StrCat("{\"step\":", step, ",\"loss\":", step + generation,
                        ".5,\"tokens\":", step * 1024, ",\"generation\":", generation, "}\n");
  }
  nlohmann::json Summary() const {
    return nlohmann::json::parse(
        SummaryJson(status_, ReadLineageRecords(status_.run_dir(), status_.checkpoint_step())));
  }

  TempFolder folder_;
  v1::RunStatus status_;
};

TEST_F(FailedRunTest, CountsTheFinalLineageAndWhatTheRecordsShowLost) {
  std::string steps;
  for (int step = 1; step <= 48; ++step) steps += Line(step, 1);
  for (int step = 41; step <= 57; ++step) steps += Line(step, 2);
  WriteWhole(folder_ / "steps.jsonl", steps + "{\"step\":58,\"lo");  // torn
  WriteWhole(folder_ / "evals.jsonl",
             "{\"step\":45,\"valid_loss\":1.5}\n{\"step\":45,\"valid_loss\":2.5}\n"
             "{\"step\":52,\"valid_loss\":3.5}\n");
  const nlohmann::json summary = Summary();
  EXPECT_EQ(summary["steps"], 50);
  EXPECT_EQ(summary["tokens"], 50 * 1024);
  EXPECT_EQ(summary["loss"], 52.5) << "of step 50 in generation 2";
  EXPECT_EQ(summary["valid_loss"], 2.5);
  EXPECT_EQ(summary["lost_steps"], 8 + 7);
  EXPECT_EQ(summary["lost_tokens"], (8 + 7) * 1024);
}

TEST_F(FailedRunTest, WithoutRecordsCountsWhatTheCoordinatorHeardOf) {
  const nlohmann::json summary = Summary();
  EXPECT_EQ(summary["steps"], 50);
  EXPECT_TRUE(summary["loss"].is_null()) << "the last known loss is of step 55";
  EXPECT_TRUE(summary["valid_loss"].is_null());
  EXPECT_EQ(summary["lost_steps"], 12);
  EXPECT_EQ(summary["lost_tokens"], 12 * 1024);
}

}  // namespace
}  // namespace paceline
