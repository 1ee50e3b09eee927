#include "worker/checkpoint/snapshot_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using testing::HasSubstr;

std::vector<std::byte> Bytes(std::size_t count, int first) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(first++);
  return bytes;
}

// One snapshot of rank 3 in one of its files.
void Write(const std::string& folder, int which, std::int64_t step, std::uint64_t generation,
           const std::vector<std::byte>& state) {
  absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(SnapshotPath(folder, 3, which), state.size());
  ASSERT_TRUE(file.ok()) << file.status();
  file->Begin();
  std::copy(state.begin(), state.end(), file->bytes().begin());
  file->Finish({.run_id = "run", .generation = generation, .rank = 3, .step = step});
}

struct Read {
  std::vector<std::byte> first = std::vector<std::byte>(40);
  std::vector<std::byte> second = std::vector<std::byte>(60);
  absl::Status From(const std::string& folder, std::int64_t step) {
    return ReadSnapshot(folder, "run", 3, step, {std::span(first), std::span(second)});
  }
};

// Changes a byte of a file.
void Flip(const std::string& path, std::streamoff at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const char byte = static_cast<char>(file.get() ^ 1);
  file.seekp(at);
  file.put(byte);
}

TEST(SnapshotFileTest, WhatWasWrittenIsReadIntoItsArrays) {
  const TempFolder folder;
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  Write(folder.path(), 1, 20, 1, Bytes(100, 200));
  Read read;
  EXPECT_EQ(read.From(folder.path(), 10), absl::OkStatus());
  EXPECT_EQ(read.first, Bytes(40, 0));
  EXPECT_EQ(read.second, Bytes(60, 40));
  ASSERT_TRUE(read.From(folder.path(), 20).ok());
  EXPECT_EQ(read.first, Bytes(40, 200));
  EXPECT_EQ(read.From(folder.path(), 30).code(), absl::StatusCode::kNotFound);
}

TEST(SnapshotFileTest, OfTwoOfOneStepTheLaterGenerationsIsRead) {
  const TempFolder folder;
  Write(folder.path(), 0, 10, 2, Bytes(100, 7));
  Write(folder.path(), 1, 10, 1, Bytes(100, 0));
  Read read;
  ASSERT_TRUE(read.From(folder.path(), 10).ok());
  EXPECT_EQ(read.first, Bytes(40, 7));
}

TEST(SnapshotFileTest, OneThatIsBeingWrittenIsNotThere) {
  const TempFolder folder;
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  absl::StatusOr<SnapshotFile> file = SnapshotFile::Open(SnapshotPath(folder.path(), 3, 0), 100);
  ASSERT_TRUE(file.ok()) << file.status();
  Read read;
  EXPECT_TRUE(read.From(folder.path(), 10).ok()) << "opened, not begun";
  file->Begin();
  EXPECT_EQ(read.From(folder.path(), 10).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(ListSnapshots(folder.path()).empty());
}

TEST(SnapshotFileTest, DamageIsFound) {
  const TempFolder folder;
  const std::string path = SnapshotPath(folder.path(), 3, 0);
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  Flip(path, 4096 + 99);
  Read read;
  EXPECT_THAT(std::string(read.From(folder.path(), 10).message()), HasSubstr("another digest"));
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  Flip(path, 40);  // in the head
  EXPECT_EQ(ReadSnapshotHead(path).status().code(), absl::StatusCode::kDataLoss);
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  std::filesystem::resize_file(path, 4096 + 50);
  EXPECT_EQ(ReadSnapshotHead(path).status().code(), absl::StatusCode::kDataLoss);
  std::filesystem::resize_file(path, 100);
  EXPECT_EQ(ReadSnapshotHead(path).status().code(), absl::StatusCode::kDataLoss);
}

TEST(SnapshotFileTest, ASnapshotOfAnotherSizeIsRefused) {
  const TempFolder folder;
  Write(folder.path(), 0, 10, 1, Bytes(99, 0));
  Read read;
  EXPECT_THAT(std::string(read.From(folder.path(), 10).message()),
              HasSubstr("holds 99 bytes of state, expected 100"));
}

TEST(SnapshotFileTest, AFolderListsWhatIsWhole) {
  const TempFolder folder;
  Write(folder.path(), 1, 20, 4, Bytes(10, 0));
  Write(folder.path(), 0, 10, 4, Bytes(10, 0));
  std::ofstream(folder / "rank-00004.0") << "nothing of ours";
  const std::vector<SnapshotHead> heads = ListSnapshots(folder.path());
  ASSERT_EQ(heads.size(), 2u);
  EXPECT_EQ(heads[0].step, 10);
  EXPECT_EQ(heads[1].step, 20);
  EXPECT_EQ(heads[1].generation, 4u);
  EXPECT_EQ(heads[1].run_id, "run");
}

// A store into memory that is not there would end the process.
TEST(SnapshotFileTest, MemoryThatIsNotThereIsRefusedAtOnce) {
  const TempFolder folder;
  const auto file = SnapshotFile::Open(SnapshotPath(folder.path(), 0, 0), std::size_t{1} << 50);
  EXPECT_FALSE(file.ok());
  EXPECT_FALSE(std::filesystem::exists(SnapshotPath(folder.path(), 0, 0)));
}

}  // namespace
}  // namespace paceline
