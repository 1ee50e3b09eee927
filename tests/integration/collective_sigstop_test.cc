// Four real processes in a collective over loopback. One is stopped with SIGSTOP, or killed: the
// survivors get out at once, by Abort or because they notice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "worker/collectives/gloo/gloo_communicator.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;

constexpr int kRanks = 4;
constexpr int kVictim = 2;

// Lines over a socket between the test and one rank.
class Line {
 public:
  explicit Line(int fd) : fd_(fd) {}
  ~Line() { close(fd_); }
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

  void Write(const std::string& text) const {
    const std::string line = text + "\n";
    EXPECT_EQ(send(fd_, line.data(), line.size(), MSG_NOSIGNAL), std::ssize(line));
  }

  // Nothing where the other end is gone or `limit` has passed.
  std::optional<std::string> Read(milliseconds limit = std::chrono::seconds(30)) {
    for (;;) {
      const std::size_t end = buffered_.find('\n');
      if (end != std::string::npos) {
        std::string line = buffered_.substr(0, end);
        buffered_.erase(0, end + 1);
        return line;
      }
      pollfd waiting{fd_, POLLIN, 0};
      if (poll(&waiting, 1, static_cast<int>(limit.count())) <= 0) return std::nullopt;
      char bytes[4096];
      const ssize_t count = read(fd_, bytes, sizeof(bytes));
      if (count <= 0) return std::nullopt;
      buffered_.append(bytes, count);
    }
  }

 private:
  int fd_;
  std::string buffered_;
};

// What one rank does: all-reduces without end, and what the test tells it.
//   progress -> entered and left;  abort -> microseconds until the operation returned, status;
//   wait -> status, once an operation has failed.
int RankMain(int rank, Line& test) {
  CommunicatorOptions options;
  options.rank = rank;
  options.size = kRanks;
  options.operation_timeout = std::chrono::seconds(60);
  auto made = MakeGlooCommunicator(
      options, [&test](const std::string& own) -> absl::StatusOr<std::vector<std::string>> {
        test.Write(own);
        std::vector<std::string> all;
        for (int i = 0; i < kRanks; ++i) all.push_back(test.Read().value_or(""));
        return all;
      });
  if (!made.ok()) return 1;
  Communicator& communicator = **made;
  Stream stream(Stream::Mode::kInline, "test");
  std::jthread steps([&] {
    std::vector<double> values(200'000, 1.0);
    while (stream.status().ok()) {
      communicator.AllReduceSum(stream, "gradients", values.data(), values.size(),
                                DataType::kFloat64);
    }
  });
  while (const auto command = test.Read()) {
    std::ostringstream reply;
    if (*command == "progress") {
      const CommunicatorProgress progress = communicator.progress();
      reply << progress.entered << " " << progress.left;
    } else {
      const auto begin = std::chrono::steady_clock::now();
      if (*command == "abort") communicator.Abort("the generation has ended");
      steps.join();
      reply << std::chrono::duration_cast<std::chrono::microseconds>(
                   std::chrono::steady_clock::now() - begin)
                   .count()
            << " " << stream.status();
      test.Write(reply.str());
      return 0;
    }
    test.Write(reply.str());
  }
  return 1;
}

class Ranks {
 public:
  Ranks() {
    for (int rank = 0; rank < kRanks; ++rank) {
      int ends[2];
      Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
      const pid_t pid = fork();
      Require(pid >= 0);
      if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        lines_.clear();  // the other ranks' ends
        close(ends[0]);
        Line test(ends[1]);
        _exit(RankMain(rank, test));
      }
      close(ends[1]);
      pids_.push_back(pid);
      lines_.push_back(std::make_unique<Line>(ends[0]));
    }
    std::string all;
    for (auto& line : lines_) {
      all += (all.empty() ? "" : "\n") + line->Read().value_or("");
    }
    for (auto& line : lines_) line->Write(all);
  }

  ~Ranks() {
    for (const pid_t pid : pids_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }

  pid_t pid(int rank) const { return pids_[rank]; }

  std::string Ask(int rank, const std::string& command) {
    lines_[rank]->Write(command);
    return lines_[rank]->Read().value_or("no answer");
  }
  void Tell(int rank, const std::string& command) { lines_[rank]->Write(command); }
  std::string Answer(int rank) { return lines_[rank]->Read().value_or("no answer"); }

  // Returns when every rank has taken some steps.
  void WaitUntilStepping() {
    for (int rank = 0; rank < kRanks; ++rank) {
      std::uint64_t left = 0;
      while (left < 5) {
        std::istringstream in(Ask(rank, "progress"));
        std::uint64_t entered = 0;
        ASSERT_TRUE(in >> entered >> left) << "rank " << rank;
      }
    }
  }

  // Returns when `rank` has been in one and the same operation for a while.
  void WaitUntilStuck(int rank) {
    std::string last;
    auto since = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - since < milliseconds(50)) {
      const std::string progress = Ask(rank, "progress");
      if (progress != last) since = std::chrono::steady_clock::now();
      last = progress;
    }
    std::istringstream in(last);
    std::uint64_t entered = 0;
    std::uint64_t left = 0;
    ASSERT_TRUE(in >> entered >> left);
    ASSERT_EQ(entered, left + 1);
  }

 private:
  static void Require(bool condition) {
    if (!condition) std::abort();
  }

  std::vector<pid_t> pids_;
  std::vector<std::unique_ptr<Line>> lines_;
};

TEST(CollectiveSigstopTest, SurvivorsOfAStoppedPeerReturnWithin100MillisecondsOfAbort) {
  Ranks ranks;
  ranks.WaitUntilStepping();
  ASSERT_EQ(kill(ranks.pid(kVictim), SIGSTOP), 0);
  int status = 0;
  ASSERT_EQ(waitpid(ranks.pid(kVictim), &status, WUNTRACED), ranks.pid(kVictim));
  ASSERT_TRUE(WIFSTOPPED(status));
  for (const int rank : {0, 1, 3}) ranks.WaitUntilStuck(rank);

  for (const int rank : {0, 1, 3}) ranks.Tell(rank, "abort");

  for (const int rank : {0, 1, 3}) {
    const std::string answer = ranks.Answer(rank);
    long microseconds = -1;
    std::istringstream(answer) >> microseconds;
    EXPECT_GE(microseconds, 0) << answer;
    EXPECT_LT(microseconds, 100'000) << answer;
    EXPECT_THAT(answer, testing::HasSubstr("ABORTED: the generation has ended"));
    RecordProperty("abort_us_rank_" + std::to_string(rank), std::to_string(microseconds));
  }
}

TEST(CollectiveSigstopTest, SurvivorsOfAKilledPeerNameItAtOnce) {
  Ranks ranks;
  ranks.WaitUntilStepping();
  for (const int rank : {0, 1, 3}) ranks.Tell(rank, "wait");

  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(kill(ranks.pid(kVictim), SIGKILL), 0);

  for (const int rank : {0, 1, 3}) {
    const std::string answer = ranks.Answer(rank);
    EXPECT_THAT(answer, testing::HasSubstr("UNAVAILABLE"));
    EXPECT_THAT(answer, testing::HasSubstr("rank 2 is gone"));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(2000));
}

}  // namespace
}  // namespace paceline
