// What the coordinator does to a run's folder.
#include "coordinator/rpc/run_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

class RunFilesTest : public ::testing::Test {
 protected:
  RunFilesTest() : checkpoint_(folder_ / "step-00000100") {
    std::filesystem::create_directory(checkpoint_);
  }
  bool Has(const std::string& name) const {
    return std::filesystem::exists(checkpoint_ + "/" + name);
  }

  TempFolder folder_;
  std::string checkpoint_;
};

TEST_F(RunFilesTest, PublishingRenamesThePendingManifestAndMayBeRepeated) {
  ASSERT_TRUE(WritePendingManifest(checkpoint_, "{}").ok());
  EXPECT_TRUE(Has("manifest.json.pending"));
  EXPECT_FALSE(Has("manifest.json"));

  EXPECT_TRUE(PublishManifest(checkpoint_).ok());
  EXPECT_TRUE(PublishManifest(checkpoint_).ok());

  EXPECT_FALSE(Has("manifest.json.pending"));
  EXPECT_EQ(ReadWhole(checkpoint_ + "/manifest.json"), "{}");
}

TEST_F(RunFilesTest, PublishingWithoutAnyManifestIsAnErrorThatNamesIt) {
  const absl::Status status = PublishManifest(checkpoint_);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(checkpoint_));
}

TEST_F(RunFilesTest, DeletedCheckpointIsGoneAndDeletingAgainIsHarmless) {
  ASSERT_TRUE(WritePendingManifest(checkpoint_, "{}").ok());
  ASSERT_TRUE(PublishManifest(checkpoint_).ok());
  WriteWhole(checkpoint_ + "/rank-0.safetensors", "bytes");
  EXPECT_TRUE(DeleteCheckpoint(checkpoint_).ok());
  EXPECT_FALSE(std::filesystem::exists(checkpoint_));
  EXPECT_TRUE(DeleteCheckpoint(checkpoint_).ok());
}

TEST_F(RunFilesTest, FolderThatIsNoCheckpointIsNeverDeleted) {
  for (const std::string& folder : {folder_.path().string(), std::string("step-1"),
                                    checkpoint_ + "/..", std::string("/"), std::string()}) {
    EXPECT_EQ(DeleteCheckpoint(folder).code(), absl::StatusCode::kInvalidArgument) << folder;
  }
  EXPECT_TRUE(std::filesystem::exists(checkpoint_));
}

TEST_F(RunFilesTest, SummaryHoldsWhatTheRunCameTo) {
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
  status.mutable_step()->set_step(300);
  status.mutable_step()->set_loss(1.0 / 3);
  status.mutable_eval()->set_valid_loss(0.5);
  for (const double seconds : {100.0, 50.0}) {
    status.add_ranks()->set_tokens(2'000'000);
    status.mutable_ranks(status.ranks_size() - 1)->set_step_seconds(seconds);
  }
  const auto summary = nlohmann::json::parse(SummaryJson(status));
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

TEST_F(RunFilesTest, SummaryOfARunWithoutAStepIsNullWhereThereIsNothing) {
  v1::RunStatus status;
  status.set_state(v1::RUN_STATE_FAILED);
  status.set_reason("bytes that are no text: \xff");
  const auto summary = nlohmann::json::parse(SummaryJson(status));
  EXPECT_EQ(summary["state"], "failed");
  for (const char* key :
       {"loss", "valid_loss", "tokens_per_second", "cost_per_million_tokens", "checkpoint"}) {
    EXPECT_TRUE(summary[key].is_null()) << key;
  }
  status.mutable_step()->set_loss(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(nlohmann::json::parse(SummaryJson(status))["loss"].is_null());
}

TEST_F(RunFilesTest, CoordinatorFilesAreRemovedOnlyWhereTheyAreStillItsOwn) {
  CoordinatorFiles files;
  files.SetInfo({.address = "127.0.0.1:1", .epoch = 1});
  std::filesystem::create_directory(folder_ / "a");
  std::filesystem::create_directory(folder_ / "b");
  ASSERT_TRUE(files.WriteTo(folder_ / "a").ok());
  ASSERT_TRUE(files.WriteTo(folder_ / "b").ok());
  CoordinatorFiles next;
  next.SetInfo({.address = "127.0.0.1:2", .epoch = 2});
  ASSERT_TRUE(next.WriteTo(folder_ / "b").ok());

  files.RemoveAll();

  EXPECT_FALSE(std::filesystem::exists(folder_ / "a/coordinator.json"));
  EXPECT_THAT(ReadWhole(folder_ / "b/coordinator.json"), HasSubstr("127.0.0.1:2"));
}

}  // namespace
}  // namespace paceline
