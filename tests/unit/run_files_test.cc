// What the coordinator does to a run's folder.
#include "coordinator/rpc/run_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class RunFilesTest : public ::testing::Test {
 protected:
  RunFilesTest() : checkpoint_(folder_ / "step-00000100-g2") {
    std::filesystem::create_directory(checkpoint_);
  }
  bool Has(const std::string& name) const {
    return std::filesystem::exists(checkpoint_ + "/" + name);
  }

  TempFolder folder_;
  TempFolder state_;
  const storage::EpochFence fence_{state_.path(), Epoch{1}};
  std::string checkpoint_;
};

TEST_F(RunFilesTest, PublishingRenamesThePendingManifestAndMayBeRepeated) {
  ASSERT_TRUE(WritePendingManifest(fence_, checkpoint_, Manifest{.step = 100}).ok());
  EXPECT_TRUE(Has("manifest.json.pending"));
  EXPECT_FALSE(Has("manifest.json"));

  EXPECT_TRUE(PublishManifest(checkpoint_).ok());
  EXPECT_TRUE(PublishManifest(checkpoint_).ok());

  EXPECT_FALSE(Has("manifest.json.pending"));
  EXPECT_EQ(ParseManifest(ReadWhole(checkpoint_ + "/manifest.json"))->step, 100);
}

TEST_F(RunFilesTest, NoManifestIsWrittenWhereAPartIsNotAsItsRankReportedIt) {
  WriteWhole(checkpoint_ + "/rank-00000.safetensors", "12345");
  Manifest manifest;
  manifest.parts = {{"rank-00000.safetensors", 5, {}}, {"rank-00001.safetensors", 5, {}}};
  const auto refusal = [&] {
    const absl::Status status = WritePendingManifest(fence_, checkpoint_, manifest);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_FALSE(Has("manifest.json.pending"));
    return std::string(status.message());
  };
  EXPECT_THAT(refusal(), HasSubstr(checkpoint_ + "/rank-00001.safetensors is not there"));
  WriteWhole(checkpoint_ + "/rank-00001.safetensors", "1234");
  EXPECT_THAT(refusal(), HasSubstr("rank-00001.safetensors has 4 bytes, its rank reported 5"));
  WriteWhole(checkpoint_ + "/rank-00001.safetensors", "12345");
  EXPECT_TRUE(WritePendingManifest(fence_, checkpoint_, manifest).ok());
}

TEST_F(RunFilesTest, PublishingWithoutAnyManifestIsAnErrorThatNamesIt) {
  const absl::Status status = PublishManifest(checkpoint_);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(checkpoint_));
}

TEST_F(RunFilesTest, DeletedCheckpointIsGoneAndDeletingAgainIsHarmless) {
  ASSERT_TRUE(WritePendingManifest(fence_, checkpoint_, Manifest{.step = 100}).ok());
  ASSERT_TRUE(PublishManifest(checkpoint_).ok());
  WriteWhole(checkpoint_ + "/rank-0.safetensors", "bytes");
  EXPECT_TRUE(DeleteCheckpoint(checkpoint_, /*committed=*/true).ok());
  EXPECT_FALSE(std::filesystem::exists(checkpoint_));
  EXPECT_TRUE(DeleteCheckpoint(checkpoint_, /*committed=*/true).ok());
  EXPECT_TRUE(DeleteCheckpoint(checkpoint_, /*committed=*/false).ok());
}

TEST_F(RunFilesTest, WhatWasFoundDamagedIsKeptUnderAnotherName) {
  WriteWhole(checkpoint_ + "/rank-0.safetensors", "bytes");
  EXPECT_TRUE(SetCheckpointAside(checkpoint_).ok());
  EXPECT_FALSE(std::filesystem::exists(checkpoint_));
  EXPECT_TRUE(std::filesystem::exists(checkpoint_ + ".damaged/rank-0.safetensors"));
  EXPECT_TRUE(SetCheckpointAside(checkpoint_).ok());
  EXPECT_TRUE(SweepCheckpoints(fence_, folder_.path(), 9, {}).ok());
  EXPECT_TRUE(std::filesystem::exists(checkpoint_ + ".damaged"));
  EXPECT_EQ(SetCheckpointAside(folder_.path()).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RunFilesTest, DiscardingNeverDeletesWhatHoldsAManifest) {
  ASSERT_TRUE(WritePendingManifest(fence_, checkpoint_, {}).ok());
  ASSERT_TRUE(PublishManifest(checkpoint_).ok());
  EXPECT_EQ(DeleteCheckpoint(checkpoint_, /*committed=*/false).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Has("manifest.json"));
}

TEST_F(RunFilesTest, SweepingRemovesOnlyWhatWasNeverCommittedAndIsNotBeingWritten) {
  const auto make = [this](const std::string& name, const std::string& file) {
    std::filesystem::create_directory(folder_ / name);
    WriteWhole(folder_ / (name + "/" + file), "bytes");
  };
  make("step-00000100-g1", "rank-00000.safetensors");         // a crash left it
  make("step-00000110-g1", "rank-00000.safetensors.tmp-17");  // likewise
  make("step-00000090-g1", "manifest.json");                  // of a journal that was lost
  make("step-00000080-g1", "manifest.json.pending");          // journaled, to be published
  make("step-00000120-g3", "rank-00000.safetensors");         // being written
  make("step-100", "rank-00000.safetensors");                 // not Paceline's
  const std::string dir = folder_.path();

  EXPECT_TRUE(SweepCheckpoints(fence_, dir, 2, {dir + "/step-00000080-g1"}).ok());
  EXPECT_TRUE(SweepCheckpoints(fence_, dir + "/missing", 2, {}).ok());

  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    left.push_back(entry.path().filename());
  }
  EXPECT_THAT(left, UnorderedElementsAre("step-00000090-g1", "step-00000080-g1", "step-00000120-g3",
                                         "step-100"));
}

TEST_F(RunFilesTest, FolderThatIsNoCheckpointIsNeverDeleted) {
  for (const std::string& folder :
       {folder_.path().string(), std::string("step-00000001-g1"), folder_ / "step-00000100",
        checkpoint_ + "/..", std::string("/"), std::string()}) {
    EXPECT_EQ(DeleteCheckpoint(folder, true).code(), absl::StatusCode::kInvalidArgument) << folder;
  }
  EXPECT_TRUE(std::filesystem::exists(checkpoint_));
}

TEST_F(RunFilesTest, CoordinatorFilesAreRemovedOnlyWhereTheyAreStillItsOwn) {
  CoordinatorFiles files(fence_);
  files.SetInfo({.address = "127.0.0.1:1", .epoch = 1});
  std::filesystem::create_directory(folder_ / "a");
  std::filesystem::create_directory(folder_ / "b");
  ASSERT_TRUE(files.WriteTo(folder_ / "a").ok());
  ASSERT_TRUE(files.WriteTo(folder_ / "b").ok());
  CoordinatorFiles next(storage::EpochFence(state_.path(), Epoch{2}));
  next.SetInfo({.address = "127.0.0.1:2", .epoch = 2});
  ASSERT_TRUE(next.WriteTo(folder_ / "b").ok());

  files.RemoveAll();

  EXPECT_FALSE(std::filesystem::exists(folder_ / "a/coordinator.json"));
  EXPECT_THAT(ReadWhole(folder_ / "b/coordinator.json"), HasSubstr("127.0.0.1:2"));
}

// Its last word came after the next one's first: that one says again who leads.
TEST_F(RunFilesTest, CoordinatorFilesThatAFormerCoordinatorTouchedAreWrittenAnew) {
  CoordinatorFiles files(fence_);
  files.SetInfo({.address = "127.0.0.1:2", .epoch = 2});
  std::filesystem::create_directory(folder_ / "a");
  std::filesystem::create_directory(folder_ / "b");
  std::filesystem::create_directory(folder_ / "c");
  for (const char* run : {"a", "b", "c"}) ASSERT_TRUE(files.WriteTo(folder_ / run).ok());
  WriteWhole(folder_ / "a/coordinator.json", "{\"address\": \"127.0.0.1:1\", \"epoch\": 1}");
  std::filesystem::remove(folder_ / "b/coordinator.json");
  std::filesystem::remove_all(folder_ / "c");

  EXPECT_TRUE(files.Tend().ok());

  EXPECT_THAT(ReadWhole(folder_ / "a/coordinator.json"), HasSubstr("127.0.0.1:2"));
  EXPECT_THAT(ReadWhole(folder_ / "b/coordinator.json"), HasSubstr("127.0.0.1:2"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "c"));
}

TEST_F(RunFilesTest, ReplacedCoordinatorWritesNoManifestAndNoCoordinatorFile) {
  CoordinatorFiles files(fence_);
  files.SetInfo({.address = "127.0.0.1:1", .epoch = 1});
  WriteWhole(state_ / "epoch-00000002.journal", "");
  EXPECT_EQ(WritePendingManifest(fence_, checkpoint_, Manifest{.step = 100}).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(files.WriteTo(checkpoint_).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(std::filesystem::is_empty(checkpoint_));
}

TEST_F(RunFilesTest, SweepingTakesDraftsOfFormerCoordinatorsFromEveryCheckpoint) {
  const std::string draft = checkpoint_ + "/manifest.json.pending.draft-e1";
  WriteWhole(draft, "{}");
  const storage::EpochFence next(state_.path(), Epoch{2});
  EXPECT_TRUE(SweepCheckpoints(next, folder_.path(), /*last_generation=*/1, {}).ok());
  EXPECT_FALSE(std::filesystem::exists(draft));
  EXPECT_TRUE(std::filesystem::exists(checkpoint_)) << "generation 2 may still write it";
}

}  // namespace
}  // namespace paceline
