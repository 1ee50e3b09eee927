// The real paceline-agent between a coordinator led by the test and real worker processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "common/process.h"
#include "common/token.h"
#include "tests/support/fake_coordinator.h"
#include "tests/support/stuck_file.h"
#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kPatience = 20s;  // of the tests: far above what they need, below their limit

std::string ProgramPath(const std::string& name) {
  const char* folder = std::getenv("PACELINE_BIN_DIR");
  return (folder == nullptr ? ProgramFolder() : std::string(folder)) + "/" + name;
}

bool EndsWithin(pid_t pid, std::chrono::milliseconds timeout) {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return errno == ESRCH;
  pollfd wait{fd, POLLIN, 0};
  const int ready = ::poll(&wait, 1, static_cast<int>(timeout.count()));
  ::close(fd);
  return ready == 1;
}

bool Eventually(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!holds()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

v1::GenerationKey Key(std::uint64_t generation) {
  v1::GenerationKey key;
  key.set_run_id("run-1");
  key.set_generation(generation);
  return key;
}

class AgentTest : public ::testing::Test {
 protected:
  AgentTest() {
    std::filesystem::create_directories(run_dir_);
    token_ = *ReadOrMakeToken(folder_ / "token");
    Restart(/*epoch=*/5);
  }

  // A coordinator at another port, as its file says.
  void Restart(std::uint64_t epoch) {
    coordinator_.reset();
    coordinator_ = std::make_unique<FakeCoordinator>(epoch, token_);
    WriteWhole(folder_ / "coordinator.json.new",
               nlohmann::json{{"address", coordinator_->address()}, {"epoch", epoch}}.dump());
    std::filesystem::rename(folder_ / "coordinator.json.new", folder_ / "coordinator.json");
  }

  std::unique_ptr<Process> StartAgent(const std::string& token_file = "token") {
    auto agent = Process::Start(
        {.argv = {ProgramPath("paceline-agent"), "--coordinator-file", folder_ / "coordinator.json",
                  "--token-file", folder_ / token_file, "--name", "node-0", "--slots", "2",
                  "--state-dir", folder_ / "state", "--worker", ProgramPath("echo_worker")},
         .log_path = folder_ / "agent.log"});
    EXPECT_TRUE(agent.ok()) << agent.status();
    return *std::move(agent);
  }

  v1::AgentMessage Await(v1::AgentMessage::BodyCase body) {
    const auto message = coordinator_->Await(body, kPatience);
    EXPECT_TRUE(message.has_value()) << "no message of kind " << body << "; the agent's log:\n"
                                     << ReadWhole(folder_ / "agent.log");
    return message.value_or(v1::AgentMessage());
  }

  void SendStart(std::uint64_t generation, const std::string& behaviour) {
    v1::CoordinatorMessage message;
    v1::StartGeneration& start = *message.mutable_start();
    *start.mutable_key() = Key(generation);
    start.set_run_file(behaviour);
    start.set_run_dir(run_dir_);
    start.set_start_tokens(1000);
    for (int slot = 0; slot < 2; ++slot) {
      start.add_assignments()->set_slot(slot);
      start.mutable_assignments(slot)->set_rank(slot);
    }
    coordinator_->Send(message);
  }
  // Starts an agent whose two workers train as `behaviour` says.
  std::unique_ptr<Process> StartTraining(const std::string& behaviour) {
    auto agent = StartAgent();
    Await(v1::AgentMessage::kRegister);
    SendStart(1, behaviour);
    Await(v1::AgentMessage::kReady);
    Await(v1::AgentMessage::kReady);
    SendPeers(1);
    return agent;
  }
  void SendPeers(std::uint64_t generation) {
    v1::CoordinatorMessage message;
    *message.mutable_peers()->mutable_key() = Key(generation);
    coordinator_->Send(message);
  }
  void SendEnd(std::uint64_t generation) {
    v1::CoordinatorMessage message;
    *message.mutable_end()->mutable_key() = Key(generation);
    message.mutable_end()->set_reason("the test is over");
    coordinator_->Send(message);
  }

  // What the newest worker of `rank` wrote first.
  pid_t PidOfRank(int rank) {
    std::istringstream log(ReadWhole(run_dir_ + "/logs/rank-0000" + std::to_string(rank) + ".log"));
    pid_t pid = -1;
    for (std::string line; std::getline(log, line);) {
      if (line.starts_with("pid ")) pid = std::stoi(line.substr(4));
    }
    return pid;
  }
  std::vector<nlohmann::json> Steps() {
    std::vector<nlohmann::json> steps;
    if (!std::filesystem::exists(run_dir_ + "/steps.jsonl")) return steps;
    std::istringstream text(ReadWhole(run_dir_ + "/steps.jsonl"));
    for (std::string line; std::getline(text, line);) steps.push_back(nlohmann::json::parse(line));
    return steps;
  }

  TempFolder folder_;
  const std::string run_dir_ = folder_ / "run-1";
  std::string token_;
  std::unique_ptr<FakeCoordinator> coordinator_;
};

TEST_F(AgentTest, CarriesAGenerationFromStartToGone) {
  const auto agent = StartAgent();
  const v1::RegisterNode node = Await(v1::AgentMessage::kRegister).register_();
  EXPECT_EQ(node.name(), "node-0");
  EXPECT_EQ(node.slots(), 2);
  EXPECT_EQ(node.pid(), agent->pid());
  EXPECT_GT(node.incarnation(), 1'600'000'000'000u);

  SendStart(1, "finish");
  EXPECT_THAT(Await(v1::AgentMessage::kReady).ready().address(), HasSubstr("address of"));
  Await(v1::AgentMessage::kReady);
  SendPeers(1);
  EXPECT_EQ(Await(v1::AgentMessage::kCheckpointPart).checkpoint_part().position().step(), 3);
  EXPECT_EQ(Await(v1::AgentMessage::kFinished).finished().step(), 3);
  EXPECT_EQ(Await(v1::AgentMessage::kFinished).finished().step(), 3);

  const std::vector<nlohmann::json> steps = Steps();
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_EQ(steps[2]["step"], 3);
  EXPECT_EQ(steps[2]["tokens"], 1000 + 3 * 64);
  EXPECT_EQ(steps[2]["loss"].get<double>(), 1.0 / 9.0);
  EXPECT_EQ(steps[2]["generation"], 1);

  const pid_t worker = PidOfRank(1);
  SendEnd(1);
  EXPECT_EQ(Await(v1::AgentMessage::kGone).gone().key().generation(), 1u);
  EXPECT_TRUE(EndsWithin(worker, 0ms));
  EXPECT_THAT(ReadWhole(run_dir_ + "/logs/rank-00001.log"),
              HasSubstr("--- run run-1 generation 1 rank 1 on node node-0"));

  v1::CoordinatorMessage release;
  release.mutable_release();
  coordinator_->Send(release);
  const auto exit = agent->WaitFor(kPatience);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->exit_code, 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "state"));
}

TEST_F(AgentTest, KilledWorkerIsReportedAtOnceWithItsSignal) {
  const auto agent = StartTraining("steps");
  const auto before = std::chrono::steady_clock::now();
  ASSERT_EQ(::kill(PidOfRank(1), SIGKILL), 0);
  const v1::RankFailed failed = Await(v1::AgentMessage::kFailed).failed();
  EXPECT_LT(std::chrono::steady_clock::now() - before, 1s);
  EXPECT_EQ(failed.rank(), 1);
  EXPECT_EQ(failed.signal(), SIGKILL);
  EXPECT_EQ(failed.exit_code(), -1);
}

TEST_F(AgentTest, FailingWorkerIsReportedOnceWithItsOwnErrorAndLastWords) {
  const auto agent = StartTraining("fail");
  const v1::RankFailed failed = Await(v1::AgentMessage::kFailed).failed();
  EXPECT_EQ(failed.error(), "a shard is torn");
  EXPECT_EQ(failed.status_code(), static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(failed.exit_code(), 70);
  ASSERT_EQ(failed.stderr_tail_size(), 1);
  EXPECT_EQ(failed.stderr_tail(0), "about to fail");
  EXPECT_NE(Await(v1::AgentMessage::kFailed).failed().rank(), failed.rank());
  SendEnd(1);
  Await(v1::AgentMessage::kGone);
  EXPECT_FALSE(coordinator_->Await(v1::AgentMessage::kFailed, 300ms).has_value());
}

TEST_F(AgentTest, KilledAgentTakesItsWorkersAlong) {
  const auto agent = StartTraining("deaf");
  const pid_t workers[] = {PidOfRank(0), PidOfRank(1)};
  ASSERT_EQ(::kill(agent->pid(), SIGKILL), 0);
  for (const pid_t worker : workers) EXPECT_TRUE(EndsWithin(worker, 1s));
}

TEST_F(AgentTest, WorkersStepOnWithoutACoordinatorAndTheNextOneIsToldAgain) {
  const auto agent = StartTraining("steps");
  ASSERT_TRUE(Eventually([&] { return !Steps().empty(); }));
  const pid_t worker = PidOfRank(0);
  coordinator_.reset();
  const std::size_t steps = Steps().size();
  EXPECT_TRUE(Eventually([&] { return Steps().size() > steps + 20; }));

  Restart(/*epoch=*/6);
  Await(v1::AgentMessage::kRegister);
  Await(v1::AgentMessage::kReady);
  Await(v1::AgentMessage::kReady);
  const v1::Heartbeat heartbeat = Await(v1::AgentMessage::kHeartbeat).heartbeat();
  ASSERT_EQ(heartbeat.progress_size(), 1);
  EXPECT_GT(heartbeat.progress(0).step().step(), static_cast<std::int64_t>(steps));
  EXPECT_FALSE(EndsWithin(worker, 0ms));
  SendEnd(1);
  Await(v1::AgentMessage::kGone);
  EXPECT_TRUE(EndsWithin(worker, 0ms));
}

TEST_F(AgentTest, CoordinatorOfAnOlderEpochIsNotObeyed) {
  const auto agent = StartTraining("steps");
  Restart(/*epoch=*/4);
  ASSERT_TRUE(Eventually([&] { return coordinator_->sessions() >= 2; }))
      << "the agent goes on looking for another";
  SendEnd(1);
  EXPECT_FALSE(coordinator_->Await(v1::AgentMessage::kGone, 300ms).has_value());
  EXPECT_FALSE(EndsWithin(PidOfRank(0), 0ms));
  EXPECT_THAT(ReadWhole(folder_ / "agent.log"), HasSubstr("its epoch 4 is over"));
  Restart(/*epoch=*/5);
  Await(v1::AgentMessage::kReady);
}

TEST_F(AgentTest, ReplacedAgentKillsItsWorkersAndExitsWorthARetry) {
  const auto agent = StartTraining("deaf");
  const pid_t worker = PidOfRank(0);
  coordinator_->Refuse();
  const auto exit = agent->WaitFor(kPatience);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->exit_code, 75);
  EXPECT_TRUE(EndsWithin(worker, 0ms));
}

TEST_F(AgentTest, SigtermTellsTheRanksFailuresAndLeavesNothing) {
  const auto agent = StartTraining("steps");
  const pid_t worker = PidOfRank(0);
  agent->Signal(SIGTERM);
  EXPECT_THAT(Await(v1::AgentMessage::kFailed).failed().error(), HasSubstr("SIGTERM"));
  const auto exit = agent->WaitFor(kPatience);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->exit_code, 75);
  EXPECT_TRUE(EndsWithin(worker, 0ms));
}

TEST_F(AgentTest, WorkerThatDoesNotEndIsKilled) {
  const auto agent = StartTraining("deaf");
  const pid_t worker = PidOfRank(1);
  SendEnd(1);
  Await(v1::AgentMessage::kGone);
  EXPECT_TRUE(EndsWithin(worker, 0ms));
}

TEST_F(AgentTest, NextGenerationAppendsToRecordsAndLogs) {
  const auto agent = StartTraining("finish");
  Await(v1::AgentMessage::kFinished);
  Await(v1::AgentMessage::kFinished);
  SendEnd(1);
  Await(v1::AgentMessage::kGone);
  SendStart(2, "finish");
  Await(v1::AgentMessage::kReady);
  Await(v1::AgentMessage::kReady);
  SendPeers(2);
  Await(v1::AgentMessage::kFinished);
  Await(v1::AgentMessage::kFinished);
  ASSERT_EQ(Steps().size(), 6u);
  EXPECT_EQ(Steps()[5]["generation"], 2);
  EXPECT_THAT(ReadWhole(run_dir_ + "/logs/rank-00000.log"), HasSubstr("generation 2 rank 0"));
}

// A disk that takes no records: training, heartbeats and the ranks' ends go on.
TEST_F(AgentTest, StuckRecordsHoldUpNeitherHeartbeatsNorTheRun) {
  StuckFile steps(run_dir_ + "/steps.jsonl");
  const auto agent = StartTraining("finish");
  Await(v1::AgentMessage::kFinished);
  Await(v1::AgentMessage::kFinished);
  for (int i = 0; i < 10; ++i) Await(v1::AgentMessage::kHeartbeat);
  SendEnd(1);
  Await(v1::AgentMessage::kGone);
  EXPECT_TRUE(Eventually([&] {
    const std::string& text = steps.Read();
    return std::count(text.begin(), text.end(), '\n') == 3;
  })) << "what waited is written once the disk takes it";
}

TEST_F(AgentTest, AgentEndsInTimeWithoutTheRecordsOfAStuckDisk) {
  StuckFile steps(run_dir_ + "/steps.jsonl");
  const auto agent = StartTraining("finish");
  Await(v1::AgentMessage::kFinished);
  Await(v1::AgentMessage::kFinished);
  agent->Signal(SIGTERM);
  ASSERT_TRUE(agent->WaitFor(kPatience).has_value());
  EXPECT_THAT(ReadWhole(folder_ / "agent.log"), HasSubstr("the disk has not taken the last 3"));
}

// The rank's log is a pipe without a reader, so that starting its worker does not come to an end.
TEST_F(AgentTest, WorkerWhoseStartHangsHoldsUpNothingAndIsGivenUp) {
  std::filesystem::create_directories(run_dir_ + "/logs");
  ASSERT_EQ(::mkfifo((run_dir_ + "/logs/rank-00001.log").c_str(), 0600), 0);
  const auto agent = StartAgent();
  Await(v1::AgentMessage::kRegister);
  SendStart(1, "deaf");
  EXPECT_EQ(Await(v1::AgentMessage::kReady).ready().rank(), 0);
  for (int i = 0; i < 10; ++i) Await(v1::AgentMessage::kHeartbeat);
  SendEnd(1);
  Await(v1::AgentMessage::kGone);

  // The slot takes the next generation's worker, and the one given up never appears.
  std::filesystem::rename(run_dir_ + "/logs/rank-00001.log", folder_ / "log-of-the-first");
  SendStart(2, "deaf");
  Await(v1::AgentMessage::kReady);
  Await(v1::AgentMessage::kReady);
  EXPECT_THAT(ReadWhole(folder_ / "log-of-the-first"), Not(HasSubstr("pid")));
  EXPECT_GT(PidOfRank(1), 0);
}

TEST_F(AgentTest, WrongTokenIsBadInput) {
  ASSERT_TRUE(ReadOrMakeToken(folder_ / "other").ok());
  const auto agent = StartAgent("other");
  const auto exit = agent->WaitFor(kPatience);
  ASSERT_TRUE(exit.has_value());
  EXPECT_EQ(exit->exit_code, 2);
}

TEST_F(AgentTest, SocketIsInAFolderForItsOwnerAlone) {
  const auto agent = StartAgent();
  Await(v1::AgentMessage::kRegister);
  struct stat info = {};
  ASSERT_EQ(::stat((folder_ / "state/node-0").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST_F(AgentTest, MetricsOfEveryRankAreServedAndPassPromtool) {
  const auto agent = StartAgent();
  const std::string address = Await(v1::AgentMessage::kRegister).register_().metrics_address();
  SendStart(1, "steps");
  Await(v1::AgentMessage::kReady);
  Await(v1::AgentMessage::kReady);
  SendPeers(1);
  std::string body;
  const auto scrape = [&] {
    httplib::Client client("http://" + address);
    const auto response = client.Get("/metrics");
    body = response ? response->body : "";
    return body;
  };
  const std::string series = "paceline_rank_step_seconds_total{run_id=\"run-1\",rank=\"1\"}";
  ASSERT_TRUE(Eventually([&] { return scrape().find(series) != std::string::npos; })) << body;
  WriteWhole(folder_ / "metrics", body);
  const auto promtool =
      Process::Start({.argv = {"/bin/sh", "-c", "exec promtool check metrics < metrics"},
                      .working_folder = folder_.path(),
                      .log_path = folder_ / "promtool.log"});
  ASSERT_TRUE(promtool.ok()) << promtool.status();
  EXPECT_TRUE((*promtool)->Wait().clean()) << ReadWhole(folder_ / "promtool.log") << body;
  SendEnd(1);
  Await(v1::AgentMessage::kGone);
  EXPECT_THAT(scrape(), Not(HasSubstr("paceline_rank_")));
}

}  // namespace
}  // namespace paceline
