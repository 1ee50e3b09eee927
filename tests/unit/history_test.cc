// The journal's past on a real disk: what snapshots cut comes back, bounded, and replay never
// needs it.
#include "coordinator/storage/history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/storage/journal.h"
#include "tests/support/temp_folder.h"

namespace paceline::storage {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::Fact FactAt(std::uint64_t index) {
  v1::Fact fact;
  fact.set_index(index);
  fact.set_at_ms(static_cast<std::int64_t>(index) * 10);
  fact.mutable_node_left()->set_node_id(index);
  fact.mutable_node_left()->set_reason(std::string(200, 'r'));
  return fact;
}

// "1", "2", "s2", "3": facts, and snapshots with an s.
struct Told {
  absl::StatusOr<HistoryRead> read;
  std::vector<std::string> what;
};

class HistoryTest : public ::testing::Test {
 protected:
  std::string Folder() const { return folder_ / "state"; }
  std::string PathOf(const std::string& name) const { return Folder() + "/" + name; }

  std::unique_ptr<Journal> Take(std::int64_t history_bytes_max = kHistoryBytesMax) {
    auto journal = OpenFileJournal(Folder(), /*read_only=*/false, history_bytes_max);
    EXPECT_TRUE(journal.ok()) << journal.status();
    const auto replay = (*journal)->Read([](const v1::StateSnapshot&) { return absl::OkStatus(); },
                                         [](const v1::Fact&) { return absl::OkStatus(); });
    EXPECT_TRUE(replay.ok()) << replay.status();
    last_ = replay->last_index;
    EXPECT_TRUE((*journal)->OpenEpoch(Epoch{replay->last_epoch.value() + 1}).ok());
    return *std::move(journal);
  }

  void Append(Journal& journal, int count) {
    for (int i = 0; i < count; ++i) ASSERT_TRUE(journal.Append({FactAt(++last_)}).ok());
  }
  void Snapshot(Journal& journal, std::size_t bytes = 0) {
    v1::StateSnapshot snapshot;
    snapshot.set_index(last_);
    if (bytes > 0) snapshot.add_runs()->set_reason(std::string(bytes, 's'));
    ASSERT_TRUE(journal.WriteSnapshot(snapshot).ok());
  }

  Told Look() const {
    Told told{absl::UnknownError("not read"), {}};
    told.read = ReadHistory(
        Folder(),
        [&](const v1::StateSnapshot& snapshot) {
          told.what.push_back(absl::StrCat("s", snapshot.index()));
          return absl::OkStatus();
        },
        [&](const v1::Fact& fact) {
          told.what.push_back(absl::StrCat(fact.index()));
          return absl::OkStatus();
        });
    return told;
  }

  std::uintmax_t HistoryBytes() const {
    std::uintmax_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(PathOf("history"))) {
      bytes += entry.file_size();
    }
    return bytes;
  }

  TempFolder folder_;
  std::uint64_t last_ = 0;
};

TEST_F(HistoryTest, WhatSnapshotsCutComesBackWithTheSnapshotsInTheirPlaces) {
  {
    auto journal = Take();
    Append(*journal, 2);
    Snapshot(*journal);
    Append(*journal, 1);
    Snapshot(*journal);
  }
  auto journal = Take();
  Append(*journal, 1);
  const Told told = Look();
  ASSERT_TRUE(told.read.ok()) << told.read.status();
  EXPECT_EQ(told.read->first_index, 1u);
  EXPECT_EQ(told.read->last_index, 4u);
  EXPECT_THAT(told.what, ElementsAre("1", "2", "s2", "3", "s3", "4"));
}

TEST_F(HistoryTest, ReplayNeedsNothingOfIt) {
  {
    auto journal = Take();
    Append(*journal, 2);
    Snapshot(*journal);
    Append(*journal, 1);
  }
  std::filesystem::remove_all(PathOf("history"));
  WriteWhole(PathOf("history"), "no folder at all");
  auto journal = Take();
  EXPECT_EQ(last_, 3u);
  Append(*journal, 1);
  Snapshot(*journal);
  Append(*journal, 1);
}

TEST_F(HistoryTest, OldestGoFirstAndTheRestBeginsAfterASnapshot) {
  constexpr std::int64_t kBytesMax = 6000;
  auto journal = Take(kBytesMax);
  for (int i = 0; i < 20; ++i) {
    Append(*journal, 5);
    Snapshot(*journal);
    ASSERT_LE(HistoryBytes(), kBytesMax);
  }
  const Told told = Look();
  ASSERT_TRUE(told.read.ok()) << told.read.status();
  EXPECT_GT(told.read->first_index, 50u);
  EXPECT_LT(told.read->first_index, 96u);
  EXPECT_EQ(told.read->last_index, 100u);
  EXPECT_EQ(told.what.front(), absl::StrCat("s", told.read->first_index - 1));
  EXPECT_EQ(told.what.back(), "s100");
}

TEST_F(HistoryTest, NothingIsKeptWhereNothingMayBe) {
  auto journal = Take(/*history_bytes_max=*/0);
  Append(*journal, 3);
  Snapshot(*journal);
  Append(*journal, 1);
  EXPECT_FALSE(std::filesystem::exists(PathOf("history")));
  const Told told = Look();
  ASSERT_TRUE(told.read.ok()) << told.read.status();
  EXPECT_EQ(told.read->first_index, 4u);
  EXPECT_THAT(told.what, ElementsAre("s3", "4"));
}

TEST_F(HistoryTest, SnapshotsLargerThanWhatHappenedBetweenThemAreNotKept) {
  auto journal = Take();
  Append(*journal, 1);
  Snapshot(*journal, 100'000);
  Append(*journal, 1);
  Snapshot(*journal, 100'000);
  EXPECT_THAT(Look().what, ElementsAre("1", "2", "s2"));
  EXPECT_LT(HistoryBytes(), 2000u);
}

// The journal allocates a mebibyte ahead.
TEST_F(HistoryTest, SealedFilesKeepNoBlocksAhead) {
  auto journal = Take();
  Append(*journal, 3);
  Snapshot(*journal);
  struct stat facts = {};
  ASSERT_EQ(::stat(PathOf("history/epoch-00000001.journal").c_str(), &facts), 0);
  EXPECT_LT(facts.st_blocks * 512, 64 << 10);
}

TEST_F(HistoryTest, FlippedByteAnywhereIsDataLossNamingTheFile) {
  auto journal = Take();
  Append(*journal, 2);
  Snapshot(*journal);
  Append(*journal, 1);
  const std::string name = "history/epoch-00000001.journal";
  const std::string full = ReadWhole(PathOf(name));
  for (std::size_t at = 0; at < full.size(); ++at) {
    std::string damaged = full;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    WriteWhole(PathOf(name), damaged);
    const Told told = Look();
    ASSERT_EQ(told.read.status().code(), absl::StatusCode::kDataLoss) << at;
    EXPECT_THAT(std::string(told.read.status().message()), HasSubstr(name)) << at;
  }
}

TEST_F(HistoryTest, MissingFileBetweenOthersIsDataLossAndMissingOldestOnesAreABeginning) {
  auto journal = Take();
  for (int i = 0; i < 3; ++i) {
    Append(*journal, 2);
    Snapshot(*journal);
  }
  Append(*journal, 1);
  const std::string first = PathOf("history/epoch-00000001.journal");
  const std::string second = PathOf("history/epoch-00000001.0002.journal");
  std::filesystem::rename(second, second + ".away");
  const Told gap = Look();
  EXPECT_EQ(gap.read.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(gap.read.status().message()), HasSubstr("epoch-00000001.0002.journal"));

  std::filesystem::remove(first);
  const Told cut = Look();
  ASSERT_TRUE(cut.read.ok()) << cut.read.status();
  EXPECT_EQ(cut.read->first_index, 5u);
  EXPECT_THAT(cut.what, ElementsAre("s4", "5", "6", "s6", "7"));
}

TEST_F(HistoryTest, FactsThatASnapshotKnowsAreMissed) {
  {
    auto journal = Take();
    Append(*journal, 3);
    Snapshot(*journal);
  }
  std::filesystem::remove(PathOf("epoch-00000001.0002.journal"));
  const std::string name = PathOf("history/epoch-00000001.journal");
  WriteWhole(name, ReadWhole(name).substr(0, ReadWhole(name).size() - 1));
  const Told told = Look();
  EXPECT_EQ(told.read.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(told.read.status().message()), HasSubstr("ends with fact 2"));
}

TEST_F(HistoryTest, TornTailOfTheLastFileIsPassedOver) {
  auto journal = Take();
  Append(*journal, 2);
  Snapshot(*journal);
  Append(*journal, 1);
  const std::string name = PathOf("epoch-00000001.0002.journal");
  WriteWhole(name, ReadWhole(name) + "half a record");
  const Told told = Look();
  ASSERT_TRUE(told.read.ok()) << told.read.status();
  EXPECT_THAT(told.what, ElementsAre("1", "2", "s2", "3"));
}

// The file of a coordinator that was replaced lies in the history, where it can still write.
TEST_F(HistoryTest, CoordinatorWhoseFileWentToTheHistoryIsFencedAndUnheard) {
  auto stale = Take();
  Append(*stale, 1);
  {
    auto newer = Take();
    Append(*newer, 1);
    Snapshot(*newer);
  }
  auto newest = Take();
  Snapshot(*newest);
  EXPECT_EQ(stale->Append({FactAt(2)}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(HistoryTest, NoFolderIsNotFound) {
  EXPECT_EQ(Look().read.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Look().what, IsEmpty());
}

}  // namespace
}  // namespace paceline::storage
