// The token file: made once, readable by its owner alone, refused otherwise.
#include "common/token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(TokenTest, MissingFileIsMadeForItsOwnerAloneAndReadBack) {
  const TempFolder folder;
  const std::string path = folder / "token";
  EXPECT_EQ(ReadToken(path).status().code(), absl::StatusCode::kNotFound);

  const auto made = ReadOrMakeToken(path);

  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_THAT(*made, MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(made->size(), 64u);
  struct stat info;
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_EQ(ReadOrMakeToken(path).value(), *made);
  EXPECT_EQ(BearerOf(*made), "Bearer " + *made);
}

TEST(TokenTest, SeveralMakersAtOnceAgree) {
  const TempFolder folder;
  std::vector<std::string> tokens(8);
  {
    std::vector<std::jthread> makers;
    for (std::string& token : tokens) {
      makers.emplace_back([&] { token = ReadOrMakeToken(folder / "token").value_or("failed"); });
    }
  }
  EXPECT_EQ(std::set<std::string>(tokens.begin(), tokens.end()).size(), 1u);
  const std::filesystem::directory_iterator files(folder.path());
  EXPECT_EQ(std::distance(begin(files), end(files)), 1) << "drafts are removed";
}

TEST(TokenTest, FileThatOthersMayReadIsRefused) {
  const TempFolder folder;
  const std::string path = folder / "token";
  ASSERT_TRUE(ReadOrMakeToken(path).ok());
  ASSERT_EQ(::chmod(path.c_str(), 0640), 0);

  const absl::Status refused = ReadToken(path).status();

  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("chmod 600 " + path));
}

TEST(TokenTest, FileWithoutATokenIsRefusedAndNotReplaced) {
  const TempFolder folder;
  const std::string path = folder / "token";
  WriteWhole(path, "hunter2\n");
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  EXPECT_EQ(ReadOrMakeToken(path).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadWhole(path), "hunter2\n");
}

TEST(TokenTest, SecretsAreEqualOnlyWhenEveryByteIs) {
  EXPECT_TRUE(EqualSecrets("", ""));
  EXPECT_TRUE(EqualSecrets("abc", "abc"));
  EXPECT_FALSE(EqualSecrets("abc", "abd"));
  EXPECT_FALSE(EqualSecrets("abc", "ab"));
  EXPECT_FALSE(EqualSecrets("", "a"));
}

}  // namespace
}  // namespace paceline
