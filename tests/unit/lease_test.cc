// Who leads, as those see it who wait: by what changes and by their own clock alone.
#include "coordinator/storage/lease.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>

#include "common/files.h"
#include "coordinator/storage/epoch_fence.h"
#include "coordinator/storage/state_folder.h"
#include "tests/support/temp_folder.h"

namespace paceline::storage {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr SteadyTime kStart = SteadyTime{} + 100s;

class LeaseTest : public ::testing::Test {
 protected:
  // As the coordinator of `epoch` does; its process is this one.
  void Lead(std::uint64_t epoch) {
    WriteWhole(folder_ / JournalName({epoch, 1}), "");
    ASSERT_TRUE(WriteLease(folder_.path(), LeaseHere(Epoch{epoch}, 2400ms)).ok());
  }
  // A renewal at a time of its own, whatever the file system's clock can tell apart.
  void Renew(std::uint64_t epoch) {
    const std::string path = folder_ / LeaseName(epoch);
    const auto before = std::filesystem::last_write_time(path);
    ASSERT_TRUE(RenewLease(folder_.path(), Epoch{epoch}).ok());
    if (std::filesystem::last_write_time(path) == before) {
      std::filesystem::last_write_time(path, before + 4ms);
    }
  }
  LeaseWatch::View Look(SteadyTime now) {
    const auto view = watch_.Look(now);
    EXPECT_TRUE(view.ok()) << view.status();
    return view.ok() ? *view : LeaseWatch::View{};
  }

  TempFolder folder_;
  LeaseWatch watch_{folder_.path(), 1000ms};
};

TEST_F(LeaseTest, FolderThatNobodyHasLedIsFree) { EXPECT_TRUE(Look(kStart).free); }

TEST_F(LeaseTest, SilenceCountsFromTheLastChangeThatWasSeen) {
  Lead(1);
  EXPECT_FALSE(Look(kStart).free);
  EXPECT_FALSE(Look(kStart + 2300ms).free);
  Renew(1);
  const LeaseWatch::View renewed = Look(kStart + 2400ms);
  EXPECT_FALSE(renewed.free);
  EXPECT_TRUE(renewed.renewed);
  EXPECT_FALSE(Look(kStart + 4800ms).free);
  const LeaseWatch::View silent = Look(kStart + 4801ms);
  EXPECT_TRUE(silent.free);
  EXPECT_FALSE(silent.renewed);
  EXPECT_THAT(silent.text, HasSubstr("silent for 2401 ms"));
}

// Its times lie in another year: only that they change matters.
TEST_F(LeaseTest, ClockOfTheLeadersMachineDoesNotMatter) {
  Lead(1);
  const std::string path = folder_ / LeaseName(1);
  const auto now = std::filesystem::last_write_time(path);
  std::filesystem::last_write_time(path, now - 10000h);
  EXPECT_FALSE(Look(kStart).free);
  std::filesystem::last_write_time(path, now + 10000h);
  EXPECT_TRUE(Look(kStart + 2s).renewed);
  std::filesystem::last_write_time(path, now - 10000h);
  EXPECT_FALSE(Look(kStart + 4s).free);
}

TEST_F(LeaseTest, NewEpochIsASignOfLifeAndOneWithoutALeaseIsGivenTheWatchersOwnLimit) {
  Lead(1);
  EXPECT_FALSE(Look(kStart).free);
  WriteWhole(folder_ / JournalName({2, 1}), "");
  const LeaseWatch::View view = Look(kStart + 2s);
  EXPECT_TRUE(view.renewed);
  EXPECT_EQ(view.epoch, Epoch{2});
  EXPECT_FALSE(Look(kStart + 3s).free);
  EXPECT_TRUE(Look(kStart + 3001ms).free);
}

TEST_F(LeaseTest, ReleasedLeaseIsFreeAtOnceAndEarlierOnesAreRemoved) {
  Lead(1);
  Lead(2);
  EXPECT_FALSE(std::filesystem::exists(folder_ / LeaseName(1)));
  EXPECT_EQ(RenewLease(folder_.path(), Epoch{1}).code(), absl::StatusCode::kNotFound);
  Lease lease = LeaseHere(Epoch{2}, 2400ms);
  lease.released = true;
  ASSERT_TRUE(WriteLease(folder_.path(), lease).ok());
  EXPECT_TRUE(Look(kStart).free);
}

TEST_F(LeaseTest, ProcessOfThisMachineThatIsGoneLeadsNoMore) {
  WriteWhole(folder_ / JournalName({1, 1}), "");
  int written[2];
  ASSERT_EQ(::pipe(written), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const char ok = WriteLease(folder_.path(), LeaseHere(Epoch{1}, 2400ms)).ok() ? 1 : 0;
    if (::write(written[1], &ok, 1) == 1) ::pause();
    ::_exit(1);
  }
  char ok = 0;
  ASSERT_EQ(::read(written[0], &ok, 1), 1);
  ASSERT_EQ(ok, 1);
  const absl::StatusOr<std::string> lease = ReadFile(folder_ / LeaseName(1), 1 << 16);
  EXPECT_FALSE(Look(kStart).free) << "it lives";
  ::kill(child, SIGKILL);
  siginfo_t info = {};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_TRUE(Look(kStart).free) << "killed, and nobody has asked about it";
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(Look(kStart).free) << "gone";
  ::close(written[0]);
  ::close(written[1]);
  // A pid means nothing on another machine.
  std::string elsewhere = lease.value();
  const std::size_t space = elsewhere.find("\"pid_space\": \"") + 14;
  elsewhere.replace(space, 4, "else");
  WriteWhole(folder_ / LeaseName(1), elsewhere);
  EXPECT_FALSE(Look(kStart).free);
}

TEST_F(LeaseTest, ProcessThatHasTheSameIdButBeganLaterIsAnother) {
  WriteWhole(folder_ / JournalName({1, 1}), "");
  Lease lease = LeaseHere(Epoch{1}, 2400ms);
  ASSERT_NE(lease.process_start, 0u);
  --lease.process_start;
  ASSERT_TRUE(WriteLease(folder_.path(), lease).ok());
  EXPECT_TRUE(Look(kStart).free);
}

TEST_F(LeaseTest, DamagedLeaseIsWaitedForLikeNone) {
  WriteWhole(folder_ / JournalName({1, 1}), "");
  WriteWhole(folder_ / LeaseName(1), "{\"epoch\": 1, \"ho");
  EXPECT_FALSE(Look(kStart).free);
  EXPECT_FALSE(Look(kStart + 1000ms).free);
  EXPECT_TRUE(Look(kStart + 1001ms).free);
}

class EpochFenceTest : public ::testing::Test {
 protected:
  void Begin(std::uint64_t epoch, std::uint32_t segment = 1) {
    WriteWhole(state_ / JournalName({epoch, segment}), "");
  }
  TempFolder state_;
  TempFolder run_;
  const EpochFence seventh_{state_.path(), Epoch{7}};
};

TEST_F(EpochFenceTest, OnlyALaterEpochRefuses) {
  Begin(6);
  Begin(7);
  EXPECT_TRUE(seventh_.Check().ok());
  EXPECT_TRUE(seventh_.Write(run_ / "file", "seventh", 0644).ok());
  // The first file of epoch 8 went with a snapshot of epoch 9.
  Begin(9, 2);
  EXPECT_EQ(seventh_.Check().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(seventh_.Write(run_ / "file", "again", 0644).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadWhole(run_ / "file"), "seventh");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(run_.path()), {}), 1)
      << "no draft is left";
}

// It stood still after it had looked: the successor takes its draft away.
TEST_F(EpochFenceTest, DraftOfAFormerCoordinatorCannotTakeItsNameAnyMore) {
  WriteWhole(run_ / "summary.json.draft-e7", "seventh");
  WriteWhole(run_ / "summary.json.draft-e8", "its own");
  WriteWhole(run_ / "notes.draft-early", "the user's");
  const EpochFence eighth(state_.path(), Epoch{8});
  EXPECT_TRUE(eighth.RemoveDrafts(run_.path()).ok());
  EXPECT_TRUE(eighth.RemoveDrafts(run_ / "missing").ok());
  EXPECT_FALSE(std::filesystem::exists(run_ / "summary.json.draft-e7"));
  EXPECT_TRUE(std::filesystem::exists(run_ / "summary.json.draft-e8"));
  EXPECT_TRUE(std::filesystem::exists(run_ / "notes.draft-early"));
}

}  // namespace
}  // namespace paceline::storage
