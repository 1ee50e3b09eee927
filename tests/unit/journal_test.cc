// The journal on a real disk: what is acknowledged comes back, and damage is told from a torn tail.
#include "coordinator/storage/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/files.h"
#include "coordinator/storage/record.h"
#include "coordinator/storage/state_folder.h"

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
  fact.mutable_node_left()->set_reason("a reason of some length");
  return fact;
}

std::vector<v1::Fact> Facts(std::uint64_t first, std::uint64_t last) {
  std::vector<v1::Fact> facts;
  for (std::uint64_t index = first; index <= last; ++index) facts.push_back(FactAt(index));
  return facts;
}

struct Found {
  absl::StatusOr<Replay> replay;
  std::uint64_t snapshot = 0;
  std::vector<std::uint64_t> facts;
};

Found ReadAll(Journal& journal) {
  Found found{absl::UnknownError("not read")};
  found.replay = journal.Read(
      [&](const v1::StateSnapshot& snapshot) {
        found.snapshot = snapshot.index();
        return absl::OkStatus();
      },
      [&](const v1::Fact& fact) {
        found.facts.push_back(fact.index());
        return absl::OkStatus();
      });
  return found;
}

class JournalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/journal_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    parent_ = pattern;
    folder_ = pattern + "/state";
  }
  void TearDown() override { std::filesystem::remove_all(parent_); }

  std::string PathOf(const std::string& name) const { return folder_ + "/" + name; }

  // Reads what is there and begins the next epoch.
  std::unique_ptr<Journal> Take(Found* found = nullptr) {
    auto journal = OpenFileJournal(folder_, /*read_only=*/false);
    EXPECT_TRUE(journal.ok()) << journal.status();
    Found read = ReadAll(**journal);
    EXPECT_TRUE(read.replay.ok()) << read.replay.status();
    const absl::Status opened = (*journal)->OpenEpoch(Epoch{read.replay->last_epoch.value() + 1});
    EXPECT_TRUE(opened.ok()) << opened;
    if (found != nullptr) *found = std::move(read);
    return *std::move(journal);
  }

  Found Look() const {
    auto journal = OpenFileJournal(folder_, /*read_only=*/true);
    EXPECT_TRUE(journal.ok()) << journal.status();
    return ReadAll(**journal);
  }

  std::string Bytes(const std::string& name) const {
    return ReadFile(PathOf(name), 1 << 30).value();
  }
  void Overwrite(const std::string& name, const std::string& bytes) const {
    std::ofstream(PathOf(name), std::ios::binary | std::ios::trunc) << bytes;
  }

  std::string parent_;
  std::string folder_;
};

constexpr char kFirst[] = "epoch-00000001.journal";
constexpr char kSecond[] = "epoch-00000002.journal";

TEST_F(JournalTest, EmptyFolderHasNoEpoch) {
  auto journal = OpenFileJournal(folder_, false);
  ASSERT_TRUE(journal.ok()) << journal.status();
  const Found found = ReadAll(**journal);
  ASSERT_TRUE(found.replay.ok());
  EXPECT_EQ(found.replay->last_epoch, Epoch{0});
  EXPECT_EQ(found.replay->last_index, 0u);
  EXPECT_EQ(std::filesystem::status(folder_).permissions(), std::filesystem::perms::owner_all);
}

TEST_F(JournalTest, AppendedFactsComeBackInOrderOverSeveralEpochs) {
  { ASSERT_TRUE(Take()->Append(Facts(1, 3)).ok()); }
  {
    auto journal = Take();
    ASSERT_TRUE(journal->Append(Facts(4, 4)).ok());
    ASSERT_TRUE(journal->Append(Facts(5, 6)).ok());
  }
  const Found found = Look();
  ASSERT_TRUE(found.replay.ok()) << found.replay.status();
  EXPECT_THAT(found.facts, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_EQ(found.replay->last_epoch, Epoch{2});
  EXPECT_THAT(found.replay->notes, IsEmpty());
}

TEST_F(JournalTest, TornTailIsCutAtEveryByteOfTheLastRecord) {
  std::size_t whole = 0;
  {
    auto journal = Take();
    ASSERT_TRUE(journal->Append(Facts(1, 2)).ok());
    whole = Bytes(kFirst).size();
    ASSERT_TRUE(journal->Append(Facts(3, 4)).ok());
  }
  const std::string full = Bytes(kFirst);
  for (std::size_t size = whole + 1; size < full.size(); ++size) {
    std::filesystem::remove(PathOf(kSecond));
    Overwrite(kFirst, full.substr(0, size));
    Found found{absl::UnknownError("")};
    auto journal = Take(&found);
    ASSERT_THAT(found.facts, ElementsAre(1, 2)) << size;
    ASSERT_EQ(found.replay->notes.size(), 1u) << size;
    EXPECT_THAT(found.replay->notes[0], HasSubstr(kFirst));
    EXPECT_EQ(Bytes(kFirst).size(), whole) << size;
    ASSERT_TRUE(journal->Append(Facts(3, 3)).ok());
    journal.reset();
    EXPECT_THAT(Look().facts, ElementsAre(1, 2, 3)) << size;
  }
}

TEST_F(JournalTest, PagesOfATornTailMayBeZeros) {
  std::size_t whole = 0;
  {
    auto journal = Take();
    ASSERT_TRUE(journal->Append(Facts(1, 2)).ok());
    whole = Bytes(kFirst).size();
  }
  Overwrite(kFirst, Bytes(kFirst) + std::string(4096, '\0'));
  Found found{absl::UnknownError("")};
  auto journal = Take(&found);
  EXPECT_THAT(found.facts, ElementsAre(1, 2));
  EXPECT_EQ(Bytes(kFirst).size(), whole);
}

TEST_F(JournalTest, FlippedByteBeforeAWholeRecordIsDataLossNamingFileAndOffset) {
  std::size_t header = 0;
  std::size_t first = 0;
  {
    auto journal = Take();
    header = Bytes(kFirst).size();
    ASSERT_TRUE(journal->Append(Facts(1, 1)).ok());
    first = Bytes(kFirst).size();
    ASSERT_TRUE(journal->Append(Facts(2, 2)).ok());
  }
  const std::string full = Bytes(kFirst);
  for (std::size_t at = 0; at < first; ++at) {
    std::string damaged = full;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x40);
    Overwrite(kFirst, damaged);
    const Found found = Look();
    ASSERT_EQ(found.replay.status().code(), absl::StatusCode::kDataLoss) << at;
    const std::string message(found.replay.status().message());
    EXPECT_THAT(message, HasSubstr(kFirst));
    EXPECT_THAT(message, HasSubstr("offset " + std::to_string(at < header ? 0 : header)));
  }
  auto journal = OpenFileJournal(folder_, false);
  ASSERT_TRUE(journal.ok());
  EXPECT_EQ(ReadAll(**journal).replay.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Bytes(kFirst).size(), full.size()) << "damage must not be cut away";
}

TEST_F(JournalTest, FlippedOrMissingByteOfASealedFileIsDataLoss) {
  { ASSERT_TRUE(Take()->Append(Facts(1, 1)).ok()); }
  { ASSERT_TRUE(Take()->Append(Facts(2, 2)).ok()); }
  const std::string full = Bytes(kFirst);

  std::string flipped = full;
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  Overwrite(kFirst, flipped);
  EXPECT_EQ(Look().replay.status().code(), absl::StatusCode::kDataLoss);

  Overwrite(kFirst, full.substr(0, full.size() - 1));
  EXPECT_EQ(Look().replay.status().code(), absl::StatusCode::kDataLoss);
}

// A coordinator that was taken for dead writes on: nobody hears it.
TEST_F(JournalTest, BytesBeyondTheSealDoNotCount) {
  { ASSERT_TRUE(Take()->Append(Facts(1, 1)).ok()); }
  { ASSERT_TRUE(Take()->Append(Facts(2, 2)).ok()); }
  const std::string sealed = Bytes(kFirst);
  v1::FactBatch batch;
  *batch.add_facts() = FactAt(2);
  *batch.add_facts() = FactAt(3);
  Overwrite(kFirst, sealed + EncodeRecord(RecordKind::kFactBatch, batch.SerializeAsString(),
                                          static_cast<std::int64_t>(sealed.size())));
  const Found found = Look();
  ASSERT_TRUE(found.replay.ok()) << found.replay.status();
  EXPECT_THAT(found.facts, ElementsAre(1, 2));
}

TEST_F(JournalTest, AppendAfterANewerEpochBeganIsRefused) {
  auto journal = Take();
  ASSERT_TRUE(journal->Append(Facts(1, 1)).ok());
  Overwrite(kSecond, "");

  EXPECT_EQ(journal->Append(Facts(2, 2)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(journal->Append(Facts(2, 2)).code(), absl::StatusCode::kFailedPrecondition);
}

// The newer coordinator's first file, and this one's, went with its snapshot.
TEST_F(JournalTest, ASnapshotOfAReplacedEpochIsRefusedAndRetiresNothing) {
  auto journal = Take();
  ASSERT_TRUE(journal->Append(Facts(1, 1)).ok());
  const std::string later = JournalName({2, 2});
  Overwrite(later.c_str(), "");
  v1::StateSnapshot snapshot;
  snapshot.set_index(1);

  EXPECT_EQ(journal->WriteSnapshot(snapshot).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(std::filesystem::exists(PathOf(later)));
  EXPECT_TRUE(std::filesystem::exists(PathOf(kFirst)));
  EXPECT_EQ(journal->Append(Facts(2, 2)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(JournalTest, EpochThatSomebodyElseCreatedIsRefused) {
  auto journal = OpenFileJournal(folder_, false);
  ASSERT_TRUE(journal.ok());
  ASSERT_TRUE(ReadAll(**journal).replay.ok());
  Overwrite(kFirst, "");
  EXPECT_EQ((*journal)->OpenEpoch(Epoch{1}).code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(JournalTest, TakingAnEpochWhoseFormerGrewSinceTheReadIsAborted) {
  { ASSERT_TRUE(Take()->Append(Facts(1, 1)).ok()); }
  auto journal = OpenFileJournal(folder_, false);
  ASSERT_TRUE(journal.ok());
  ASSERT_TRUE(ReadAll(**journal).replay.ok());
  const std::string read = Bytes(kFirst);
  v1::FactBatch batch;
  *batch.add_facts() = FactAt(2);
  Overwrite(kFirst, read + EncodeRecord(RecordKind::kFactBatch, batch.SerializeAsString(),
                                        static_cast<std::int64_t>(read.size())));

  EXPECT_EQ((*journal)->OpenEpoch(Epoch{2}).code(), absl::StatusCode::kAborted);

  journal->reset();
  const Found found = Look();
  ASSERT_TRUE(found.replay.ok()) << found.replay.status();
  EXPECT_THAT(found.facts, ElementsAre(1, 2)) << "the cut-off epoch must hide nothing";
}

// A snapshot of epoch 3 removes the files of epochs 1 and 2: the name that would tell epoch 1 of
// its successor is gone again.
TEST_F(JournalTest, EpochWhoseSuccessorIsGoneAgainIsFencedByItsOwnFilesRemoval) {
  auto stale = Take();
  ASSERT_TRUE(stale->Append(Facts(1, 1)).ok());
  std::filesystem::remove(PathOf(kFirst));  // as epoch 3 does
  EXPECT_EQ(stale->Append(Facts(2, 2)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(JournalTest, EpochCutOffWhileItWasBeingMadeIsPassedOver) {
  { ASSERT_TRUE(Take()->Append(Facts(1, 2)).ok()); }
  Overwrite(kSecond, "half a header");
  Found found{absl::UnknownError("")};
  auto journal = Take(&found);
  EXPECT_THAT(found.facts, ElementsAre(1, 2));
  EXPECT_EQ(found.replay->last_epoch, Epoch{2});
  ASSERT_TRUE(journal->Append(Facts(3, 3)).ok());
  journal.reset();
  EXPECT_THAT(Look().facts, ElementsAre(1, 2, 3));
}

TEST_F(JournalTest, NewerVersionIsRefusedNamingBoth) {
  v1::JournalHeader header;
  header.set_version(kJournalVersion + 1);
  header.set_epoch(1);
  header.set_segment(1);
  header.set_first_index(1);
  std::filesystem::create_directory(folder_);
  Overwrite(kFirst, EncodeRecord(RecordKind::kJournalHeader, header.SerializeAsString(), 0));

  const Found found = Look();

  ASSERT_EQ(found.replay.status().code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(found.replay.status().message());
  EXPECT_THAT(message, HasSubstr("version " + std::to_string(kJournalVersion + 1)));
  EXPECT_THAT(message, HasSubstr("up to " + std::to_string(kJournalVersion)));
}

TEST_F(JournalTest, SnapshotReplacesWhatLiesBeforeItAndTheTailIsReplayed) {
  {
    auto journal = Take();
    ASSERT_TRUE(journal->Append(Facts(1, 5)).ok());
    v1::StateSnapshot snapshot;
    snapshot.set_index(5);
    ASSERT_TRUE(journal->WriteSnapshot(snapshot).ok());
    ASSERT_TRUE(journal->Append(Facts(6, 7)).ok());
    snapshot.set_index(7);
    ASSERT_TRUE(journal->WriteSnapshot(snapshot).ok());
    ASSERT_TRUE(journal->Append(Facts(8, 9)).ok());
  }
  EXPECT_FALSE(std::filesystem::exists(PathOf(kFirst)));
  EXPECT_FALSE(std::filesystem::exists(PathOf("snapshot-00000000000000000005")));
  Found found{absl::UnknownError("")};
  auto journal = Take(&found);
  EXPECT_EQ(found.snapshot, 7u);
  EXPECT_THAT(found.facts, ElementsAre(8, 9));
  ASSERT_TRUE(journal->Append(Facts(10, 10)).ok());
  journal.reset();
  EXPECT_THAT(Look().facts, ElementsAre(8, 9, 10));
}

TEST_F(JournalTest, CrashBetweenSnapshotAndCutReplaysOnlyWhatFollowsTheSnapshot) {
  std::string before;
  {
    auto journal = Take();
    ASSERT_TRUE(journal->Append(Facts(1, 5)).ok());
    before = Bytes(kFirst);
    v1::StateSnapshot snapshot;
    snapshot.set_index(5);
    ASSERT_TRUE(journal->WriteSnapshot(snapshot).ok());
  }
  std::filesystem::remove(PathOf("epoch-00000001.0002.journal"));
  Overwrite(kFirst, before);
  const Found found = Look();
  ASSERT_TRUE(found.replay.ok()) << found.replay.status();
  EXPECT_EQ(found.snapshot, 5u);
  EXPECT_THAT(found.facts, IsEmpty());
  EXPECT_EQ(found.replay->last_index, 5u);
}

TEST_F(JournalTest, DamagedSnapshotIsDataLossAndAMissingFileTooWherePartsAreGone) {
  {
    auto journal = Take();
    ASSERT_TRUE(journal->Append(Facts(1, 5)).ok());
    v1::StateSnapshot snapshot;
    snapshot.set_index(5);
    ASSERT_TRUE(journal->WriteSnapshot(snapshot).ok());
    ASSERT_TRUE(journal->Append(Facts(6, 6)).ok());
  }
  const std::string name = "snapshot-00000000000000000005";
  const std::string full = Bytes(name);
  for (std::size_t at = 0; at < full.size(); ++at) {
    std::string damaged = full;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    Overwrite(name, damaged);
    EXPECT_EQ(Look().replay.status().code(), absl::StatusCode::kDataLoss) << at;
  }
  std::filesystem::remove(PathOf(name));
  EXPECT_EQ(Look().replay.status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(JournalTest, DuplicatedRecordIsDataLoss) {
  {
    auto journal = Take();
    ASSERT_TRUE(journal->Append(Facts(1, 2)).ok());
  }
  v1::FactBatch batch;
  *batch.add_facts() = FactAt(2);
  const std::string full = Bytes(kFirst);
  Overwrite(kFirst, full + EncodeRecord(RecordKind::kFactBatch, batch.SerializeAsString(),
                                        static_cast<std::int64_t>(full.size())));
  const Found found = Look();
  EXPECT_EQ(found.replay.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(found.replay.status().message()), HasSubstr("fact 2 follows fact 2"));
}

// A limit on the file's size stands for the full disk: the kernel refuses the write.
TEST_F(JournalTest, FullDiskIsKeptAsAnErrorAndLosesNothingAcknowledged) {
  auto journal = Take();
  ASSERT_TRUE(journal->Append(Facts(1, 3)).ok());
  const auto size = static_cast<rlim_t>(Bytes(kFirst).size());
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const old_handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit full{size + 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &full), 0);
  const absl::Status refused = journal->Append(Facts(4, 6));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, old_handler);

  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_EQ(journal->Append(Facts(4, 4)), refused) << "nothing is accepted after an error";
  journal.reset();
  Found found{absl::UnknownError("")};
  Take(&found);
  EXPECT_THAT(found.facts, ElementsAre(1, 2, 3));
}

TEST_F(JournalTest, ReadOnlyLookCreatesAndCutsNothing) {
  EXPECT_FALSE(Look().replay.ok());
  EXPECT_FALSE(std::filesystem::exists(folder_));
  auto journal = Take();
  ASSERT_TRUE(journal->Append(Facts(1, 2)).ok());
  Overwrite(kFirst, Bytes(kFirst) + "torn");
  const std::string before = Bytes(kFirst);
  EXPECT_THAT(Look().facts, ElementsAre(1, 2));
  EXPECT_EQ(Bytes(kFirst), before);
}

}  // namespace
}  // namespace paceline::storage
