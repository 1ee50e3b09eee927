// Real processes: how they end, what their logs and tails hold, and that none is left behind.
#include "common/process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace paceline {
namespace {

using std::chrono::milliseconds;
using namespace std::chrono_literals;

class ProcessTest : public ::testing::Test {
 protected:
  ProcessTest() {
    std::string pattern = ::testing::TempDir() + "process_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~ProcessTest() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<Process> Shell(const std::string& script, ProcessOptions options = {}) {
    options.argv = {"/bin/sh", "-c", script};
    if (options.log_path.empty()) options.log_path = Path("log");
    auto process = Process::Start(std::move(options));
    EXPECT_TRUE(process.ok()) << process.status();
    return process.ok() ? *std::move(process) : nullptr;
  }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::string Read(const std::string& name) const {
    std::ifstream file(Path(name));
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  std::string folder_;
};

// A pidfd says when a process that is not our child has ended.
bool EndsWithin(pid_t pid, milliseconds timeout) {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return errno == ESRCH;
  pollfd wait{fd, POLLIN, 0};
  const int ready = ::poll(&wait, 1, static_cast<int>(timeout.count()));
  ::close(fd);
  return ready == 1;
}

// Waits until `read` (of a log that a child writes) holds a whole line that is a number.
pid_t AwaitPid(const std::function<std::vector<std::string>()>& lines) {
  const auto deadline = std::chrono::steady_clock::now() + 10s;
  while (std::chrono::steady_clock::now() < deadline) {
    const std::vector<std::string> seen = lines();
    if (!seen.empty() && !seen.front().empty()) return std::stoi(seen.front());
    std::this_thread::yield();
  }
  return -1;
}

TEST_F(ProcessTest, ExitCodeIsReported) {
  const auto process = Shell("exit 3");
  const ProcessExit exit = process->Wait();
  EXPECT_EQ(exit.exit_code, 3);
  EXPECT_EQ(exit.signal, 0);
  EXPECT_FALSE(exit.clean());
  EXPECT_EQ(ToString(exit), "exit code 3");
}

TEST_F(ProcessTest, SignalIsReported) {
  const auto process = Shell("kill -SEGV $$");
  const ProcessExit exit = process->Wait();
  EXPECT_EQ(exit.exit_code, -1);
  EXPECT_EQ(exit.signal, SIGSEGV);
  EXPECT_EQ(ToString(exit), "signal 11 (Segmentation fault)");
}

TEST_F(ProcessTest, MissingProgramIsNotFoundAndNamed) {
  const auto process = Process::Start({.argv = {"/no/such/program"}});
  ASSERT_FALSE(process.ok());
  EXPECT_EQ(process.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(process.status().message()), ::testing::HasSubstr("/no/such/program"));
}

TEST_F(ProcessTest, FolderOfTheLogIsMade) {
  Shell("echo out", {.log_path = Path("missing/logs/rank.log")})->Wait();
  EXPECT_EQ(Read("missing/logs/rank.log"), "out\n");
}

TEST_F(ProcessTest, LogThatCannotBeMadeIsNamed) {
  std::ofstream(Path("file")) << "not a folder";
  const auto process = Process::Start({.argv = {"/bin/true"}, .log_path = Path("file/rank.log")});
  ASSERT_FALSE(process.ok());
  EXPECT_THAT(std::string(process.status().message()), ::testing::HasSubstr("file/rank.log"));
}

TEST_F(ProcessTest, LogIsAppendedWithAHeaderEachTime) {
  Shell("echo out; echo err >&2", {.log_header = "--- first"})->Wait();
  Shell("echo again", {.log_header = "--- second"})->Wait();
  const std::string log = Read("log");
  EXPECT_THAT(log, ::testing::StartsWith("--- first\n"));
  EXPECT_THAT(log, ::testing::HasSubstr("out\n"));
  EXPECT_THAT(log, ::testing::HasSubstr("err\n"));
  EXPECT_THAT(log, ::testing::EndsWith("--- second\nagain\n"));
}

TEST_F(ProcessTest, TailHoldsTheLastLinesOfStderrAlone) {
  const auto process = Shell(
      "echo out; i=0; while [ $i -lt 200 ]; do echo line $i >&2; i=$((i+1)); done; "
      "printf unfinished >&2",
      {.stderr_tail_lines = 3});
  process->Wait();
  EXPECT_THAT(process->stderr_tail(), ::testing::ElementsAre("line 198", "line 199", "unfinished"));
}

TEST_F(ProcessTest, EndlessLineIsCutInTheTail) {
  const auto process = Shell("head -c 1000000 /dev/zero | tr '\\0' x >&2");
  process->Wait();
  ASSERT_EQ(process->stderr_tail().size(), 1u);
  EXPECT_EQ(process->stderr_tail().front().size(), 4096u);
  EXPECT_EQ(Read("log").size(), 1000000u);
}

TEST_F(ProcessTest, WaitForGivesUpWhileTheChildLives) {
  const auto process = Shell("exec sleep 60");
  EXPECT_FALSE(process->WaitFor(1ms).has_value());
  EXPECT_FALSE(process->exit().has_value());
  process->Kill();
  EXPECT_EQ(process->Wait().signal, SIGKILL);
}

TEST_F(ProcessTest, EndIsToldOnce) {
  std::promise<ProcessExit> told;
  ProcessOptions options;
  options.on_exit = [&](const ProcessExit& exit) { told.set_value(exit); };
  const auto process = Shell("exit 7", std::move(options));
  std::future<ProcessExit> future = told.get_future();
  ASSERT_EQ(future.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(future.get().exit_code, 7);
}

// The log is a pipe without a reader: it opens when the test reads it.
class LaunchTest : public ProcessTest {
 protected:
  LaunchTest() { EXPECT_EQ(::mkfifo(Path("log").c_str(), 0600), 0); }

  std::unique_ptr<Process> Launch(const std::string& script) {
    ProcessOptions options{.argv = {"/bin/sh", "-c", script}, .log_path = Path("log")};
    options.on_start = [this](const absl::StatusOr<pid_t>& pid) { started_.set_value(pid); };
    auto process = Process::Launch(std::move(options));
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }
  void OpenLog() { reader_.open(Path("log")); }

  std::promise<absl::StatusOr<pid_t>> started_;
  std::ifstream reader_;
};

TEST_F(LaunchTest, LaunchWaitsForNoLogAndTellsTheIdLater) {
  const auto process = Launch("exec sleep 60");
  EXPECT_EQ(process->pid(), -1);
  OpenLog();
  const absl::StatusOr<pid_t> pid = started_.get_future().get();
  ASSERT_TRUE(pid.ok()) << pid.status();
  EXPECT_EQ(*pid, process->pid());
  EXPECT_GT(process->pid(), 0);
  EXPECT_FALSE(process->Cancel());
}

TEST_F(LaunchTest, SignalBeforeTheForkReachesTheChild) {
  const auto process = Launch("exec sleep 60");
  process->Kill();
  EXPECT_EQ(process->pid(), -1);
  OpenLog();
  const auto exit = process->WaitFor(10s);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->signal, SIGKILL);
}

TEST_F(LaunchTest, CancelledOneIsGivenUpWithoutWaitingAndNeverForked) {
  auto process = Launch("touch " + Path("ran"));
  EXPECT_TRUE(process->Cancel());
  process.reset();
  OpenLog();
  std::string line;
  EXPECT_FALSE(std::getline(reader_, line)) << "the thread has closed the log";
  EXPECT_FALSE(std::filesystem::exists(Path("ran")));
  std::future<absl::StatusOr<pid_t>> told = started_.get_future();
  EXPECT_EQ(told.wait_for(0s), std::future_status::timeout);
}

TEST_F(LaunchTest, MissingProgramIsTold) {
  std::promise<absl::Status> told;
  const auto process = Process::Launch(
      {.argv = {"/no/such/program"},
       .on_start = [&](const absl::StatusOr<pid_t>& pid) { told.set_value(pid.status()); }});
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ(told.get_future().get().code(), absl::StatusCode::kNotFound);
  (*process)->Kill();
}

TEST_F(ProcessTest, IgnoredAndBlockedSignalsAreDefaultInTheChild) {
  sigset_t term;
  sigset_t before;
  ::sigemptyset(&term);
  ::sigaddset(&term, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &term, &before);
  const auto process = Shell("exec sleep 60");
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  process->Signal(SIGTERM);
  const auto exit = process->WaitFor(10s);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->signal, SIGTERM);
}

TEST_F(ProcessTest, EnvironmentIsAddedAndReplaced) {
  ASSERT_EQ(::setenv("PROCESS_TEST_OLD", "old", 1), 0);
  Shell("echo $PROCESS_TEST_OLD $PROCESS_TEST_NEW",
        {.environment = {"PROCESS_TEST_OLD=replaced", "PROCESS_TEST_NEW=new"}})
      ->Wait();
  EXPECT_EQ(Read("log"), "replaced new\n");
}

TEST_F(ProcessTest, DestructionKillsTheChildAndItsChildren) {
  auto process = Shell("sleep 60 & echo $! >&2; wait");
  const pid_t child = process->pid();
  const pid_t grandchild = AwaitPid([&] { return process->stderr_tail(); });
  ASSERT_GT(grandchild, 0);
  process.reset();
  EXPECT_TRUE(EndsWithin(child, 0ms));
  EXPECT_TRUE(EndsWithin(grandchild, 10s));
}

TEST_F(ProcessTest, ChildrenOfAChildThatExitsAreKilled) {
  auto process = Shell("sleep 60 & echo $! >&2");
  process->Wait();
  ASSERT_EQ(process->stderr_tail().size(), 1u);
  EXPECT_TRUE(EndsWithin(std::stoi(process->stderr_tail().front()), 10s));
}

// The middle process is this very program, forked: it starts a child and is then killed with
// SIGKILL, so no destructor of its runs.
TEST_F(ProcessTest, ChildDiesWithItsKilledParent) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t middle = ::fork();
  if (middle == 0) {
    auto child = Process::Start({.argv = {"/bin/sleep", "60"}});
    const pid_t pid = child.ok() ? (*child)->pid() : -1;
    if (::write(ends[1], &pid, sizeof(pid)) != sizeof(pid)) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  pid_t child = -1;
  ASSERT_EQ(::read(ends[0], &child, sizeof(child)), static_cast<ssize_t>(sizeof(child)));
  ASSERT_GT(child, 0);
  EXPECT_FALSE(EndsWithin(child, 0ms));
  ASSERT_EQ(::kill(middle, SIGKILL), 0);
  EXPECT_TRUE(EndsWithin(child, 1s));
  ::waitpid(middle, nullptr, 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

// PR_SET_PDEATHSIG follows the thread that forked: one that ends must not take the child along.
TEST_F(ProcessTest, ChildOutlivesTheThreadThatStartedIt) {
  std::unique_ptr<Process> process;
  std::thread([&] { process = Shell("exec sleep 60"); }).join();
  EXPECT_FALSE(process->WaitFor(200ms).has_value());
}

TEST_F(ProcessTest, DescriptorsAreNotInherited) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);  // without close-on-exec, as some libraries open them
  Shell("ls /proc/self/fd | wc -l")->Wait();
  EXPECT_EQ(Read("log"), "4\n");  // 0, 1, 2 and the folder that ls reads
  ::close(ends[0]);
  ::close(ends[1]);
}

// As an agent does with a worker that mpirun has started.
TEST_F(ProcessTest, AdoptedProcessIsWatchedKilledAndItsLogRead) {
  const auto child = Shell("echo last words; exec sleep 1000", {.log_path = Path("log")});
  ASSERT_NE(child, nullptr);
  while (Read("log").empty()) std::this_thread::yield();
  std::promise<ProcessExit> ended;
  auto adopted = Process::Adopt(child->pid(), Path("log"),
                                [&](const ProcessExit& exit) { ended.set_value(exit); });
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_FALSE((*adopted)->exit().has_value());

  (*adopted)->Kill();

  const ProcessExit exit = ended.get_future().get();
  EXPECT_FALSE(exit.known());
  EXPECT_FALSE(exit.clean());
  EXPECT_EQ((*adopted)->stderr_tail(), std::vector<std::string>{"last words"});
  EXPECT_EQ(child->Wait().signal, SIGKILL);
  EXPECT_EQ(Process::Adopt(child->pid(), "", nullptr).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace paceline
