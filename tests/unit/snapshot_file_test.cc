#include "worker/checkpoint/snapshot_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/xxh128.h"
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
           std::vector<std::byte> state) {
  absl::StatusOr<SnapshotFile> file =
      SnapshotFile::Open(SnapshotPath(folder, 3, which), state.size());
  ASSERT_TRUE(file.ok()) << file.status();
  const std::array<std::span<std::byte>, 1> arrays = {state};
  const std::string digest = file->Fill(arrays);
  file->Finish({.run_id = "run", .generation = generation, .rank = 3, .step = step}, digest);
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

TEST(SnapshotReaderTest, NoticesThatItsFileIsWrittenOver) {
  const TempFolder folder;
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  const std::string path = SnapshotPath(folder.path(), 3, 0);
  absl::StatusOr<SnapshotReader> reader = SnapshotReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->head().step, 10);
  EXPECT_EQ(reader->bytes(), 100u);
  std::string read(60, '\0');
  EXPECT_EQ(reader->Read(40, read), absl::OkStatus());
  EXPECT_EQ(std::memcmp(read.data(), Bytes(60, 40).data(), 60), 0);
  EXPECT_EQ(reader->Read(41, read).code(), absl::StatusCode::kAborted) << "beyond the end";
  EXPECT_EQ(reader->CheckUnchanged(), absl::OkStatus());
  absl::StatusOr<SnapshotFile> file = SnapshotFile::Open(path, 100);
  ASSERT_TRUE(file.ok());
  file->Begin();
  EXPECT_EQ(reader->CheckUnchanged().code(), absl::StatusCode::kAborted);
  file->Finish({.run_id = "run", .generation = 1, .rank = 3, .step = 20}, reader->digest());
  EXPECT_EQ(reader->CheckUnchanged().code(), absl::StatusCode::kAborted);
}

// Whoever has the old one open must not lose the memory under its hands.
TEST(SnapshotFileTest, AFileOfAnotherSizeTakesTheOldOnesPlace) {
  const TempFolder folder;
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  const std::string path = SnapshotPath(folder.path(), 3, 0);
  absl::StatusOr<SnapshotReader> reader = SnapshotReader::Open(path);
  ASSERT_TRUE(reader.ok());
  Write(folder.path(), 0, 20, 2, Bytes(50, 0));
  std::string read(100, '\0');
  EXPECT_EQ(reader->Read(0, read), absl::OkStatus());
  EXPECT_EQ(reader->CheckUnchanged(), absl::OkStatus());
  EXPECT_EQ(ReadSnapshotHead(path)->step, 20);
}

TEST(SnapshotFileTest, ACopyCountsWithItsDigestAlone) {
  const TempFolder folder;
  const std::string path = SnapshotPath(folder.path(), 3, 0);
  absl::StatusOr<SnapshotFile> file = SnapshotFile::Open(path, 4);
  ASSERT_TRUE(file.ok());
  const SnapshotHead head = {.run_id = "run", .generation = 1, .rank = 3, .step = 10};
  file->Begin();
  EXPECT_EQ(file->FinishCopy(head, std::string(32, '0')).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(ReadSnapshotHead(path).ok());
  const std::string digest = Xxh128Of(std::string(4, '\0'));
  EXPECT_EQ(file->FinishCopy(head, digest), absl::OkStatus());
  EXPECT_EQ(ReadSnapshotHead(path)->step, 10);
}

// A generation writes over what is not of its lineage first, then over the older one.
TEST(SnapshotFileTest, TheTurnIsThatOfTheLessWorthyFile) {
  const TempFolder folder;
  const SnapshotHead next = {.run_id = "run", .generation = 2, .rank = 3, .step = 40};
  EXPECT_EQ(NextSnapshot(folder.path(), next, 20).loses_step, -1);
  Write(folder.path(), 0, 10, 1, Bytes(100, 0));
  Write(folder.path(), 1, 20, 1, Bytes(100, 0));
  EXPECT_EQ(NextSnapshot(folder.path(), next, 20).which, 0);
  EXPECT_EQ(NextSnapshot(folder.path(), next, 20).loses_step, 10);
  EXPECT_EQ(NextSnapshot(folder.path(), next, 10).which, 1) << "step 20 lies behind its start";
  Write(folder.path(), 1, 20, 2, Bytes(100, 0));
  EXPECT_EQ(NextSnapshot(folder.path(), next, 10).which, 0) << "it is its own";
}

}  // namespace
}  // namespace paceline
