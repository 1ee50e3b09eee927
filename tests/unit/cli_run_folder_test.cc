#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "launch/cli/log_follower.h"
#include "launch/cli/run_folder.h"
#include "launch/cli/sampling.h"
#include "launch/cli/summary.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_folder.h"

namespace paceline::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// A run folder whose run.toml was written `age` ago.
void MakeRun(const TempFolder& folder, const std::string& run_id, std::chrono::seconds age) {
  fs::create_directories(folder.path() / run_id);
  const std::string run_toml = folder / (run_id + "/run.toml");
  WriteWhole(run_toml, "");
  fs::last_write_time(run_toml, fs::file_time_type::clock::now() - age);
}

std::string Found(const TempFolder& folder, const std::string& name) {
  const absl::StatusOr<RunFolder> run = FindRunFolder(folder.path().string(), name);
  return run.ok() ? run->run_id : std::string(run.status().message());
}

TEST(RunIdTest, HoldsNameTimeAndARandomPart) {
  EXPECT_EQ(MakeRunId("quick", 0, 0xabc1f2e), "quick-19700101-000000-1f2e");
}

TEST(RunFolderTest, NewFolderIsTheOwnersAloneAndHoldsTheRunFile) {
  const TempFolder temp;
  RunFile run_file;
  run_file.run.name = "a";
  const absl::StatusOr<RunFolder> folder = CreateRunFolder(temp / "runs", run_file);
  ASSERT_TRUE(folder.ok()) << folder.status();
  struct stat info {};
  ASSERT_EQ(::stat(folder->path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_EQ(ReadWhole(folder->RunToml()), ToToml(run_file));
  EXPECT_TRUE(fs::is_directory(folder->Logs()));
  EXPECT_EQ(CheckpointDir(*folder, run_file), folder->path + "/checkpoints");
}

TEST(RunFolderTest, RunDirThatIsARunsOwnFolderIsRefused) {
  const TempFolder temp;
  MakeRun(temp, "a", std::chrono::seconds(0));
  RunFile run_file;
  run_file.run.name = "b";
  const absl::Status status = CreateRunFolder(temp / "a", run_file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("is the folder of a run"));
}

TEST(RunFolderTest, RunsAreFoundByIdPrefixAndLatest) {
  const TempFolder temp;
  MakeRun(temp, "alpha-1", std::chrono::seconds(30));
  MakeRun(temp, "alpha-12", std::chrono::seconds(20));
  MakeRun(temp, "beta-1", std::chrono::seconds(10));
  fs::create_directories(temp.path() / "no-run");
  EXPECT_EQ(Found(temp, "latest"), "beta-1");
  EXPECT_EQ(Found(temp, "alpha-1"), "alpha-1");
  EXPECT_EQ(Found(temp, "alpha-12"), "alpha-12");
  EXPECT_EQ(Found(temp, "be"), "beta-1");
  EXPECT_EQ(Found(temp, temp / "alpha-12"), "alpha-12");
  EXPECT_THAT(Found(temp, "alpha"), HasSubstr("fits several runs; there are\n  alpha-12\n"));
  EXPECT_THAT(Found(temp, ""), HasSubstr("name a run (or \"latest\")"));
  EXPECT_THAT(Found(temp, "gamma"), HasSubstr("there is no run \"gamma\""));
}

TEST(RunFolderTest, TheOnlyRunNeedsNoName) {
  const TempFolder temp;
  MakeRun(temp, "alpha-1", std::chrono::seconds(0));
  EXPECT_EQ(Found(temp, ""), "alpha-1");
}

TEST(RunFolderTest, MissingRunDirHasNoRuns) {
  EXPECT_THAT(ListRunFolders("/nonexistent"), IsEmpty());
  EXPECT_EQ(FindRunFolder("/nonexistent", "a").status().code(), absl::StatusCode::kNotFound);
}

TEST(LogFollowerTest, EveryLineIsGivenOnceAndWhole) {
  const TempFolder temp;
  WriteWhole(temp / "coordinator.log", "one\ntwo\nthr");
  LogFollower follower(temp.path().string(), std::nullopt);
  EXPECT_THAT(follower.NewLines(), ElementsAre("coordinator | one", "coordinator | two"));
  EXPECT_THAT(follower.NewLines(), IsEmpty());
  std::ofstream(temp / "coordinator.log", std::ios::app) << "ee\n";
  WriteWhole(temp / "rank-00001.log", "a\n");
  EXPECT_THAT(follower.NewLines(), UnorderedElementsAre("coordinator | three", "rank-00001 | a"));
  std::ofstream(temp / "rank-00001.log", std::ios::app) << "last words";
  EXPECT_THAT(follower.NewLines(), IsEmpty());
  EXPECT_THAT(follower.Finish(), ElementsAre("rank-00001 | last words"));
}

TEST(LogFollowerTest, OneRankMayBeAskedFor) {
  const TempFolder temp;
  WriteWhole(temp / "coordinator.log", "one\n");
  WriteWhole(temp / "rank-00001.log", "a\n");
  EXPECT_THAT(LogFollower(temp.path().string(), 1).NewLines(), ElementsAre("rank-00001 | a"));
  LogFollower missing(temp.path().string(), 7);
  EXPECT_THAT(missing.NewLines(), IsEmpty());
  EXPECT_TRUE(missing.empty());
}

TEST(SamplerTest, TemperatureZeroTakesTheLikeliest) {
  Sampler sampler(0, 1);
  EXPECT_EQ(sampler.Draw(std::vector<float>{0.1f, 3.0f, 3.0f}), 1);
}

TEST(SamplerTest, EqualSeedsGiveEqualDrawsAndFrequenciesFollowTheLogits) {
  Sampler first(1.0, 7);
  Sampler second(1.0, 7);
  const std::vector<float> logits = {0.0f, std::log(3.0f)};
  int ones = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::int32_t token = first.Draw(logits);
    EXPECT_EQ(token, second.Draw(logits));
    ones += token;
  }
  EXPECT_NEAR(ones / 4000.0, 0.75, 0.03);
}

TEST(SamplerTest, LogitsThatAreNoNumbersAreNeverDrawn) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Sampler sampler(1.0, 1);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler.Draw(std::vector<float>{nan, 0.0f, nan}), 1);
  EXPECT_EQ(sampler.Draw(std::vector<float>{nan, nan}), -1);
}

Conclusion ConclusionFor(const v1::RunStatus& status, const std::string& run_dir) {
  return ConclusionOf({"a-1", "/runs/a-1"}, run_dir, status,
                      {{"steps", 5}, {"loss", nullptr}, {"checkpoint", "/runs/a-1/c/step-5"}});
}

TEST(CheckpointDirTest, BelongsToTheRunThatCameFirst) {
  const TempFolder temp;
  RunFile run_file;
  run_file.checkpoint.dir = temp / "shared";
  const RunFolder first{"first-1", temp / "first-1"};
  const RunFolder second{"second-1", temp / "second-1"};
  EXPECT_TRUE(ClaimCheckpointDir(first, run_file).ok());
  EXPECT_TRUE(ClaimCheckpointDir(first, run_file).ok()) << "resume";
  const absl::Status refused = ClaimCheckpointDir(second, run_file);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("belongs to run first-1, not to run second-1"));
  EXPECT_EQ(ReadWhole(temp / "shared/OWNER"), "first-1\n");
  EXPECT_EQ(std::distance(fs::directory_iterator(temp / "shared"), fs::directory_iterator()), 1);
}

TEST(ConclusionTest, WhatNamesTheRankAlreadyIsNotSaidTwice) {
  v1::RunStatus status;
  status.set_reason("rank 3 on node-1 was not ready within 120 s");
  status.mutable_failure()->set_rank(3);
  status.mutable_failure()->set_error(status.reason());
  EXPECT_EQ(FailureText(status), status.reason());
}

TEST(ConclusionTest, LastLineSaysWhatToDo) {
  v1::RunStatus status;
  status.set_state(v1::RUN_STATE_COMPLETED);
  EXPECT_EQ(ConclusionFor(status, "runs").exit_code, ExitCode::kDone);
  EXPECT_THAT(ConclusionFor(status, "runs").lines.back(), HasSubstr("paceline generate"));
  status.set_state(v1::RUN_STATE_STOPPED);
  EXPECT_EQ(ConclusionFor(status, "runs").exit_code, ExitCode::kInterrupted);
  EXPECT_EQ(ConclusionFor(status, "runs").lines.back(), "next: paceline resume a-1");
  EXPECT_EQ(ConclusionFor(status, "x").lines.back(), "next: paceline resume a-1 --run-dir x");
}

TEST(ConclusionTest, FailureNamesRankHostAndCauseAndChoosesTheExitCode) {
  v1::RunStatus status;
  status.set_state(v1::RUN_STATE_FAILED);
  status.set_reason("rank 3 on node-1 was ended by SIGKILL");
  status.mutable_failure()->set_rank(3);
  status.mutable_failure()->set_signal(9);
  v1::NodeStatus& node = *status.add_nodes();
  node.set_name("node-1");
  node.set_host("host-a");
  EXPECT_EQ(FailureText(status), "rank 3 on host host-a (node-1), ended by signal 9");
  EXPECT_EQ(ConclusionFor(status, "runs").exit_code, ExitCode::kBroken);
  status.set_retryable(true);
  EXPECT_EQ(ConclusionFor(status, "runs").exit_code, ExitCode::kRetry);
  EXPECT_EQ(ConclusionFor(status, "runs").lines.back(), "next: paceline resume a-1");
  status.set_retryable(false);
  status.mutable_failure()->set_status_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(ConclusionFor(status, "runs").exit_code, ExitCode::kBadInput);
  EXPECT_THAT(ConclusionFor(status, "runs").lines.back(), HasSubstr("mend what is named above"));
}

}  // namespace
}  // namespace paceline::cli
