// The journal on a disk that is truly full: a small tmpfs in a mount namespace of this process's
// own. As root.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common/files.h"
#include "coordinator/storage/journal.h"
#include "coordinator/take_over.h"
#include "tests/support/temp_folder.h"

namespace paceline::storage {
namespace {

constexpr std::uint64_t kDiskBytes = 4 << 20;
constexpr std::uint64_t kPromisedRoom = 256 << 10;  // docs/guarantees.md
constexpr std::uint64_t kFactBytes = 1000;          // and a few more

// A file system of kDiskBytes that this process alone sees, and that ends with it.
class SmallDisk {
 public:
  SmallDisk() {
    const std::string size = "size=" + std::to_string(kDiskBytes);
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("small", folder_.path().c_str(), "tmpfs", 0, size.c_str()) != 0) {
      status_ = ErrnoStatus(errno, "mounting a small disk; the tests run as root");
    }
  }
  ~SmallDisk() { ::umount2(folder_.path().c_str(), MNT_DETACH); }

  const absl::Status& status() const { return status_; }
  std::string operator/(const std::string& name) const { return folder_ / name; }

  // Writes until no byte fits any more.
  void Fill() const {
    const int file = ::open((folder_ / "fill").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_GE(file, 0);
    std::vector<char> block(1 << 16, 'x');
    for (std::size_t count = block.size(); count > 0;) {
      if (::write(file, block.data(), count) <= 0) count /= 2;
    }
    ASSERT_EQ(errno, ENOSPC) << std::strerror(errno);
    ::close(file);
  }

 private:
  TempFolder folder_;
  absl::Status status_;
};

v1::Fact FactAt(std::uint64_t index) {
  v1::Fact fact;
  fact.set_index(index);
  fact.mutable_node_left()->set_reason(std::string(kFactBytes, 'r'));
  return fact;
}

TEST(FullDiskTest, TheJournalTakesItsRoomOnAndThenSaysSoLosingNothingAcknowledged) {
  const SmallDisk disk;
  ASSERT_TRUE(disk.status().ok()) << disk.status();
  const auto no_snapshot = [](const v1::StateSnapshot&) { return absl::OkStatus(); };
  std::uint64_t acknowledged = 0;
  {
    auto journal = OpenFileJournal(disk / "state", /*read_only=*/false);
    ASSERT_TRUE(journal.ok()) << journal.status();
    const auto no_fact = [](const v1::Fact&) { return absl::OkStatus(); };
    ASSERT_TRUE((*journal)->Read(no_snapshot, no_fact).ok());
    ASSERT_TRUE((*journal)->OpenEpoch(Epoch{1}).ok());
    const auto append_until = [&](std::uint64_t index) {
      absl::Status status;
      while (status.ok() && acknowledged < index) {
        status = (*journal)->Append({FactAt(acknowledged + 1)});
        if (status.ok()) ++acknowledged;
      }
      return status;
    };
    // Most of the room that was taken first is used up.
    const std::uint64_t before = 700;
    ASSERT_TRUE(append_until(before).ok());
    disk.Fill();
    const absl::Status status = append_until(kDiskBytes / kFactBytes);  // more than fit
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_GE((acknowledged - before) * kFactBytes, kPromisedRoom - kFactBytes);
  }
  auto journal = OpenFileJournal(disk / "state", /*read_only=*/true);
  ASSERT_TRUE(journal.ok()) << journal.status();
  std::uint64_t found = 0;
  const auto count = [&found](const v1::Fact& fact) {
    found = fact.index();
    return absl::OkStatus();
  };
  ASSERT_TRUE((*journal)->Read(no_snapshot, count).ok());
  EXPECT_EQ(found, acknowledged);
}

// It could not write a word into the epoch's file that ends the one that leads.
TEST(FullDiskTest, WhoCannotLeadForWantOfRoomEndsNobody) {
  using std::chrono::milliseconds;
  const SmallDisk disk;
  ASSERT_TRUE(disk.status().ok()) << disk.status();
  const TakeOverOptions options{
      .state_dir = disk / "state", .look_interval = milliseconds{10}, .lease = milliseconds{100}};
  auto leader = TakeOver(options);
  ASSERT_TRUE(leader.ok()) << leader.status();
  disk.Fill();
  EXPECT_EQ(TakeOver(options).status().code(), absl::StatusCode::kResourceExhausted);
  const absl::Status appended = leader->journal->Append({FactAt(1)});
  EXPECT_TRUE(appended.ok()) << appended;
}

}  // namespace
}  // namespace paceline::storage
