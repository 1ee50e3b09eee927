// What a node must get right before it joins a run under way.
#include "worker/agent/self_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using testing::HasSubstr;

TEST(SelfTestTest, AHealthyMachinePassesAndLeavesNothing) {
  const TempFolder folder;
  const absl::Status status = RunSelfTest((folder.path() / "checkpoints/.self-test").string());
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path() / "checkpoints"));
}

TEST(SelfTestTest, OneFlippedBitOfTheProductIsFound) {
  std::vector<float> product(static_cast<std::size_t>(kSelfTestSize) * kSelfTestSize);
  MultiplySelfTest(product);
  EXPECT_TRUE(CheckSelfTest(product).ok());
  product[12345] += 1;
  const absl::Status status = CheckSelfTest(product);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("(64, 57)"));
  product[12345] = 0.0f / 0.0f;
  EXPECT_FALSE(CheckSelfTest(product).ok()) << "NaN";
}

TEST(SelfTestTest, AFolderThatCannotBeWrittenIsNamed) {
  const absl::Status status = RunSelfTest("/proc/self-test/file");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("/proc/self-test/file"));
}

}  // namespace
}  // namespace paceline
