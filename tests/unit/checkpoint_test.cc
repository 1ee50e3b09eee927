#include "worker/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <numeric>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Extents = std::vector<std::int64_t>;

// A slice together with its values.
struct Held {
  TensorSliceInfo info;
  std::vector<float> values;
  SliceView view() const { return {info, values.data()}; }
};

// Element (i, j, ...) of a tensor has the value of its row-major index.
Held Make(const std::string& name, const Extents& global, const Extents& start,
          const Extents& shape) {
  Held held{{name, "F32", global, start, shape, ""}, {}};
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i;
    std::int64_t index = 0;
    std::int64_t stride = 1;
    for (std::size_t d = shape.size(); d-- > 0;) {
      index += (start[d] + rest % shape[d]) * stride;
      rest /= shape[d];
      stride *= global[d];
    }
    held.values.push_back(static_cast<float>(index));
  }
  return held;
}

absl::StatusOr<WrittenPart> WritePart(int rank, std::int64_t step, const std::string& dir,
                                      const std::vector<Held>& slices) {
  absl::StatusOr<WrittenPart> result = absl::InternalError("done was not called");
  PartWriter writer(
      rank, [&](absl::StatusOr<WrittenPart> part, std::int64_t) { result = std::move(part); });
  std::vector<SliceView> views;
  for (const Held& held : slices) views.push_back(held.view());
  RETURN_IF_ERROR(writer.Snapshot({step, 1}, dir, views));
  writer.Flush();
  return result;
}

// What the coordinator does when all parts are there.
void Commit(const std::string& folder, const std::vector<WrittenPart>& parts) {
  Manifest manifest;
  manifest.run_id = "test";
  manifest.step = parts.front().step;
  for (const WrittenPart& part : parts) {
    manifest.parts.push_back({part.file, part.bytes, part.slices});
  }
  WriteWhole(folder + "/manifest.json", ToJson(manifest));
}

// A committed checkpoint of step 100 in two parts: "w" (6, 8) in four blocks, "norm" (5) whole.
std::string Committed(const TempFolder& dir, std::int64_t step = 100) {
  std::vector<WrittenPart> parts;
  for (int rank = 0; rank < 2; ++rank) {
    std::vector<Held> slices = {Make("w", {6, 8}, {rank * 3, 0}, {3, 5}),
                                Make("w", {6, 8}, {rank * 3, 5}, {3, 3})};
    if (rank == 1) slices.push_back(Make("norm", {5}, {0}, {5}));
    auto part = WritePart(rank, step, dir.path(), slices);
    EXPECT_TRUE(part.ok()) << part.status();
    parts.push_back(*part);
  }
  const std::string folder = dir / CheckpointFolderName({step, 1});
  Commit(folder, parts);
  return folder;
}

absl::Status OpenAndVerify(const std::string& folder) {
  ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(folder));
  return reader->Verify();
}

TEST(CheckpointTest, EverySliceReadsBackAcrossParts) {
  TempFolder dir;
  const auto reader = CheckpointReader::Open(Committed(dir));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->manifest().step, 100);
  for (std::int64_t row = 0; row <= 6; ++row) {
    for (std::int64_t column = 0; column <= 8; ++column) {
      for (std::int64_t rows = 0; rows <= 6 - row; ++rows) {
        for (std::int64_t columns = 0; columns <= 8 - column; ++columns) {
          const Held expected = Make("w", {6, 8}, {row, column}, {rows, columns});
          std::vector<float> out(static_cast<std::size_t>(rows * columns), -1);
          const absl::Status status =
              (*reader)->Read("w", Extents{row, column}, Extents{rows, columns}, out);
          ASSERT_TRUE(status.ok()) << status;
          ASSERT_EQ(out, expected.values);
        }
      }
    }
  }
  std::vector<float> norm(5);
  ASSERT_TRUE((*reader)->Read("norm", Extents{0}, Extents{5}, norm).ok());
  EXPECT_THAT(norm, ElementsAre(0, 1, 2, 3, 4));
}

TEST(CheckpointTest, ScalarsAndCubesReadBack) {
  TempFolder dir;
  auto part = WritePart(0, 1, dir.path(),
                        {Make("s", {}, {}, {}), Make("c", {3, 4, 5}, {0, 0, 0}, {3, 2, 5}),
                         Make("c", {3, 4, 5}, {0, 2, 0}, {3, 2, 5})});
  ASSERT_TRUE(part.ok()) << part.status();
  Commit(dir / "step-00000001-g1", {*part});
  const auto reader = CheckpointReader::Open(dir / "step-00000001-g1");
  ASSERT_TRUE(reader.ok()) << reader.status();
  std::vector<float> scalar(1, -1);
  ASSERT_TRUE((*reader)->Read("s", {}, {}, scalar).ok());
  EXPECT_EQ(scalar[0], 0);
  for (const auto& [start, shape] : {std::pair{Extents{0, 0, 0}, Extents{3, 4, 5}},
                                     std::pair{Extents{1, 1, 2}, Extents{2, 2, 3}}}) {
    const Held expected = Make("c", {3, 4, 5}, start, shape);
    std::vector<float> out(expected.values.size());
    ASSERT_TRUE((*reader)->Read("c", start, shape, out).ok());
    EXPECT_EQ(out, expected.values);
  }
}

TEST(CheckpointTest, SnapshotIsTheStateOfItsMoment) {
  TempFolder dir;
  std::vector<absl::StatusOr<WrittenPart>> done;
  {
    Held held = Make("w", {1000}, {0}, {1000});
    PartWriter writer(3, [&](absl::StatusOr<WrittenPart> part, std::int64_t) {
      done.push_back(std::move(part));
    });
    for (std::int64_t step = 1; step <= 5; ++step) {
      std::fill(held.values.begin(), held.values.end(), static_cast<float>(step));
      const SliceView view = held.view();
      ASSERT_TRUE(writer.Snapshot({step, 1}, dir.path(), {&view, 1}).ok());
      std::fill(held.values.begin(), held.values.end(), -1.0f);
    }
  }
  ASSERT_EQ(done.size(), 5u);
  for (std::int64_t step = 1; step <= 5; ++step) {
    const WrittenPart& part = *done[step - 1];
    EXPECT_EQ(part.step, step);
    EXPECT_EQ(part.file, "rank-00003.safetensors");
    EXPECT_GE(part.write_seconds, part.fsync_seconds);
    const std::string folder = dir / CheckpointFolderName({step, 1});
    Commit(folder, {part});
    const auto reader = CheckpointReader::Open(folder);
    ASSERT_TRUE(reader.ok()) << reader.status();
    std::vector<float> out(1000);
    ASSERT_TRUE((*reader)->Read("w", Extents{0}, Extents{1000}, out).ok());
    EXPECT_EQ(out, std::vector<float>(1000, static_cast<float>(step)));
  }
}

TEST(CheckpointTest, APartThatIsGivenUpLeavesNoFile) {
  TempFolder dir;
  const Held held = Make("w", {1000}, {0}, {1000});
  const SliceView view = held.view();
  absl::Status done;
  PartWriter writer(
      0, [&](const absl::StatusOr<WrittenPart>& part, std::int64_t) { done = part.status(); });
  ASSERT_TRUE(writer.Snapshot({1, 1}, dir.path(), {&view, 1}).ok());
  EXPECT_TRUE(writer.FlushFor(std::chrono::seconds(60)));
  EXPECT_TRUE(done.ok()) << done;
  writer.GiveUp();
  ASSERT_TRUE(writer.Snapshot({2, 1}, dir.path(), {&view, 1}).ok());
  writer.Flush();
  EXPECT_TRUE(absl::IsCancelled(done)) << done;
  EXPECT_TRUE(std::filesystem::exists(dir / "step-00000001-g1/rank-00000.safetensors"));
  EXPECT_TRUE(std::filesystem::is_empty(dir / "step-00000002-g1"));
}

TEST(CheckpointTest, PartsOfManyChunksKeepTheirDigests) {
  TempFolder dir;
  auto part = WritePart(0, 1, dir.path(),
                        {Make("a", {3'000'000}, {0}, {3'000'000}), Make("b", {7}, {0}, {7}),
                         Make("none", {0}, {0}, {0}), Make("c", {1'048'576}, {0}, {1'048'576})});
  ASSERT_TRUE(part.ok()) << part.status();
  Commit(dir / "step-00000001-g1", {*part});
  EXPECT_TRUE(OpenAndVerify(dir / "step-00000001-g1").ok());
}

TEST(CheckpointTest, EveryFlippedByteOfAPartIsFoundByName) {
  TempFolder dir;
  const std::string folder = Committed(dir);
  const std::string path = folder + "/rank-00001.safetensors";
  const std::string whole = ReadWhole(path);
  const std::size_t body = 5 * sizeof(float) + 24 * sizeof(float);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    std::string flipped = whole;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x10);
    WriteWhole(path, flipped);
    const absl::Status status = OpenAndVerify(folder);
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << "byte " << i << " " << status;
    ASSERT_THAT(std::string(status.message()), HasSubstr("rank-00001.safetensors"));
    if (i >= whole.size() - body) {
      const bool in_norm = i >= whole.size() - 5 * sizeof(float);
      ASSERT_THAT(std::string(status.message()),
                  HasSubstr(in_norm ? "tensor \"norm\"" : "tensor \"w\""));
    }
  }
  WriteWhole(path, whole);
  EXPECT_TRUE(OpenAndVerify(folder).ok());
}

TEST(CheckpointTest, ReadFindsAFlippedByteOutsideOfWhatItCopies) {
  TempFolder dir;
  const std::string folder = Committed(dir);
  const std::string path = folder + "/rank-00001.safetensors";
  std::string damaged = ReadWhole(path);
  damaged[damaged.size() - 1] ^= 1;  // the last element of "norm"
  WriteWhole(path, damaged);
  const auto reader = CheckpointReader::Open(folder);
  ASSERT_TRUE(reader.ok());
  std::vector<float> out(5);
  for (const std::int64_t count : {2, 5}) {
    const absl::Status status =
        (*reader)->Read("norm", Extents{0}, Extents{count}, std::span(out).first(count));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("tensor \"norm\""), HasSubstr("rank-00001.safetensors")));
  }
}

TEST(CheckpointTest, TruncatedAndMissingPartsAreFoundByName) {
  TempFolder dir;
  const std::string folder = Committed(dir);
  const std::string path = folder + "/rank-00000.safetensors";
  const std::string whole = ReadWhole(path);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() - 1, whole.size() + 1}) {
    std::string other = whole;
    other.resize(size);
    WriteWhole(path, other);
    const absl::Status status = OpenAndVerify(folder);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank-00000.safetensors"));
  }
  std::filesystem::remove(path);
  const absl::Status status = OpenAndVerify(folder);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("rank-00000.safetensors: this part is missing"));
}

TEST(CheckpointTest, FileTruncatedAfterOpeningIsFound) {
  TempFolder dir;
  const std::string folder = Committed(dir);
  const auto reader = CheckpointReader::Open(folder);
  ASSERT_TRUE(reader.ok());
  std::filesystem::resize_file(folder + "/rank-00001.safetensors", 300);
  EXPECT_EQ((*reader)->Verify().code(), absl::StatusCode::kDataLoss);
}

TEST(CheckpointTest, FolderWithoutManifestIsNoCheckpoint) {
  TempFolder dir;
  Committed(dir, 50);
  Committed(dir, 150);
  Committed(dir, 1'000'000'000);  // more digits than usual
  ASSERT_TRUE(WritePart(0, 200, dir.path(), {Make("w", {4}, {0}, {4})}).ok());
  WriteWhole(dir / "step-00000200-g1/manifest.json.pending", "{}");
  std::filesystem::create_directory(dir / "step-7-g1");
  WriteWhole(dir / "step-7-g1/manifest.json", "{}");
  std::filesystem::create_directory(dir / "step-00000300-g1-copy");
  WriteWhole(dir / "step-00000300-g1-copy/manifest.json", "{}");

  EXPECT_THAT(
      ListCheckpoints(dir.path()),
      ElementsAre(dir / "step-1000000000-g1", dir / "step-00000150-g1", dir / "step-00000050-g1"));
  EXPECT_TRUE(ListCheckpoints(dir / "missing").empty());
  EXPECT_EQ(CheckpointReader::Open(dir / "step-00000200-g1").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(CheckpointTest, NewerVersionIsRefused) {
  TempFolder dir;
  const std::string folder = Committed(dir);
  Manifest manifest = CheckpointReader::Open(folder).value()->manifest();
  manifest.version = kManifestVersion + 1;
  WriteWhole(folder + "/manifest.json", ToJson(manifest));
  EXPECT_EQ(CheckpointReader::Open(folder).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CheckpointTest, MissingCoverIsRefusedByName) {
  TempFolder dir;
  auto part = WritePart(0, 1, dir.path(), {Make("w", {6, 8}, {0, 0}, {3, 8})});
  ASSERT_TRUE(part.ok());
  Commit(dir / "step-00000001-g1", {*part});
  const auto reader = CheckpointReader::Open(dir / "step-00000001-g1");
  ASSERT_TRUE(reader.ok()) << reader.status();
  std::vector<float> out(48);
  const absl::Status status = (*reader)->Read("w", Extents{0, 0}, Extents{6, 8}, out);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("tensor \"w\""), HasSubstr("24 of 48")));
  EXPECT_EQ((*reader)->Verify().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE((*reader)->Read("w", Extents{0, 0}, Extents{3, 8}, std::span(out).first(24)).ok());
}

TEST(CheckpointTest, OverlappingSlicesAreRefused) {
  TempFolder dir;
  auto a = WritePart(0, 1, dir.path(), {Make("w", {6}, {0}, {4})});
  auto b = WritePart(1, 1, dir.path(), {Make("w", {6}, {3}, {3})});
  ASSERT_TRUE(a.ok() && b.ok());
  Commit(dir / "step-00000001-g1", {*a, *b});
  EXPECT_EQ(CheckpointReader::Open(dir / "step-00000001-g1").status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(CheckpointTest, ReadsThatCannotBeAreRefused) {
  TempFolder dir;
  const auto reader = CheckpointReader::Open(Committed(dir));
  ASSERT_TRUE(reader.ok());
  std::vector<float> out(48);
  const auto code = [&](const char* name, Extents start, Extents shape, std::size_t size) {
    return (*reader)->Read(name, start, shape, std::span(out).first(size)).code();
  };
  EXPECT_EQ(code("v", {0, 0}, {6, 8}, 48), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("w", {0, 1}, {6, 8}, 48), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("w", {-1, 0}, {6, 8}, 48), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("w", {0}, {48}, 48), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("w", {0, 0}, {6, 8}, 47), absl::StatusCode::kInvalidArgument);
}

TEST(CheckpointTest, CommittedCheckpointIsNeverWrittenAgain) {
  TempFolder dir;
  const std::string folder = Committed(dir);
  const std::string before = ReadWhole(folder + "/rank-00000.safetensors");
  const auto part = WritePart(0, 100, dir.path(), {Make("w", {4}, {0}, {4})});
  EXPECT_EQ(part.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadWhole(folder + "/rank-00000.safetensors"), before);
}

TEST(CheckpointTest, UncommittedPartIsReplaced) {
  TempFolder dir;
  ASSERT_TRUE(WritePart(0, 100, dir.path(), {Make("old", {400}, {0}, {400})}).ok());
  auto part = WritePart(0, 100, dir.path(), {Make("new", {4}, {0}, {4})});
  ASSERT_TRUE(part.ok()) << part.status();
  Commit(dir / "step-00000100-g1", {*part});
  EXPECT_TRUE(OpenAndVerify(dir / "step-00000100-g1").ok());
}

TEST(CheckpointTest, ImpossibleSliceIsRefusedBeforeAnythingIsWritten) {
  TempFolder dir;
  Held held = Make("w", {4}, {0}, {4});
  held.info.dtype = "F5";
  EXPECT_EQ(WritePart(0, 1, dir.path(), {held}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(CheckpointTest, FolderThatCannotBeMadeIsNamed) {
  TempFolder dir;
  WriteWhole(dir / "file", "");
  const auto part = WritePart(0, 1, dir / "file", {Make("w", {4}, {0}, {4})});
  EXPECT_FALSE(part.ok());
  EXPECT_THAT(std::string(part.status().message()), HasSubstr(dir / "file"));
}

// A limit on the size of files stands in for a full disk: both fail the write in its middle.
TEST(CheckpointTest, FullDiskIsSaidWithWhatToDoAndLeavesTheLastCheckpoint) {
  TempFolder dir;
  const std::string good = Committed(dir, 100);
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {1 << 20, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);

  const auto part = WritePart(0, 200, dir.path(), {Make("w", {1 << 20}, {0}, {1 << 20})});

  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(part.status().code(), absl::StatusCode::kResourceExhausted) << part.status();
  EXPECT_THAT(
      std::string(part.status().message()),
      AllOf(HasSubstr(dir / "step-00000200-g1/rank-00000.safetensors"), HasSubstr("free space")));
  EXPECT_TRUE(std::filesystem::is_empty(dir / "step-00000200-g1"));
  EXPECT_THAT(ListCheckpoints(dir.path()), ElementsAre(good));
  EXPECT_TRUE(OpenAndVerify(good).ok());
}

}  // namespace
}  // namespace paceline
