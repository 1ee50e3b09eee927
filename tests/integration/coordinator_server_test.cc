// The real paceline-coordinator, started, asked, killed and started again.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <poll.h>
#include <signal.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/process.h"
#include "common/token.h"
#include "paceline/v1/coordinator.grpc.pb.h"
#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr auto kLimit = 20s;  // of anything here; a busy machine is slow, not wrong
constexpr int kBadInput = 2;
constexpr int kBroken = 70;
constexpr int kRetry = 75;

// Waits until `path` exists.
bool WaitForFile(const std::filesystem::path& path) {
  const auto deadline = std::chrono::steady_clock::now() + kLimit;
  const int watch = ::inotify_init1(IN_CLOEXEC);
  ::inotify_add_watch(watch, path.parent_path().c_str(), IN_CREATE | IN_MOVED_TO);
  while (!std::filesystem::exists(path) && std::chrono::steady_clock::now() < deadline) {
    pollfd waited{watch, POLLIN, 0};
    ::poll(&waited, 1, 1000);
    char events[4096];
    if (waited.revents != 0 && ::read(watch, events, sizeof(events)) < 0) break;
  }
  ::close(watch);
  return std::filesystem::exists(path);
}

std::string Program() {
  const char* const folder = std::getenv("PACELINE_BIN_DIR");
  return std::string(folder == nullptr ? "." : folder) + "/paceline-coordinator";
}

// One run of the program.
class RunningCoordinator {
 public:
  explicit RunningCoordinator(const std::string& state, std::vector<std::string> flags = {},
                              std::string log = "")
      : state_(state) {
    std::filesystem::create_directories(state);
    std::filesystem::remove(state + "/coordinator.json");
    std::vector<std::string> argv = {Program(), "--state-dir", state};
    argv.insert(argv.end(), flags.begin(), flags.end());
    auto started = Process::Start({.argv = argv, .log_path = log.empty() ? state + "/log" : log});
    if (!started.ok()) throw std::runtime_error(started.status().ToString());
    process_ = *std::move(started);
  }

  void WaitUntilItListens() {
    if (!WaitForFile(state_ + "/coordinator.json")) {
      throw std::runtime_error("no coordinator.json; the log: " + ReadWhole(state_ + "/log"));
    }
    info_ = nlohmann::json::parse(ReadWhole(state_ + "/coordinator.json"));
    channel_ = grpc::CreateChannel(info_["address"], grpc::InsecureChannelCredentials());
    token_ = ReadToken(info_["token_file"]).value();
  }

  // The exit code; -1: a signal, or it lives on.
  int ExitCode() {
    const auto exit = process_->WaitFor(kLimit);
    return exit ? exit->exit_code : -1;
  }
  void KillNow() {
    process_->Kill();
    process_->Wait();
  }
  void Stop() { process_->Signal(SIGSTOP); }
  void Continue() { process_->Signal(SIGCONT); }
  int Terminate() {
    process_->Signal(SIGTERM);
    return ExitCode();
  }
  std::string LastLine() const {
    const std::vector<std::string> tail = process_->stderr_tail();
    return tail.empty() ? "" : tail.back();
  }

  std::unique_ptr<grpc::ClientContext> Context() const { return ContextWith(token_); }
  static std::unique_ptr<grpc::ClientContext> ContextWith(const std::string& token) {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + kLimit);
    if (!token.empty()) context->AddMetadata("authorization", BearerOf(token));
    return context;
  }

  httplib::Result Get(const std::string& path) const {
    httplib::Client client("http://" + info_["metrics_address"].get<std::string>());
    return client.Get(path);
  }

  const nlohmann::json& info() const { return info_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  std::string state_;
  std::unique_ptr<Process> process_;
  nlohmann::json info_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string token_;
};

// A node, by the protocol that agents speak.
class Node {
 public:
  Node(const RunningCoordinator& coordinator, const std::string& name)
      : stub_(v1::Coordinator::NewStub(coordinator.channel())),
        context_(coordinator.Context()),
        stream_(stub_->AgentSession(context_.get())) {
    v1::AgentMessage message;
    message.set_incarnation(1);
    v1::RegisterNode& node = *message.mutable_register_();
    node.set_name(name);
    node.set_incarnation(1);
    node.set_host("localhost");
    node.set_slots(2);
    node.set_pid(::getpid());
    node.set_metrics_address("127.0.0.1:9999");
    node.set_protocol_version(1);
    stream_->Write(message);
    stream_->Read(&registered_);
  }
  ~Node() { context_->TryCancel(); }

  // The coordinator's first answer.
  const v1::CoordinatorMessage& registered() const { return registered_; }
  grpc::Status Finish() { return stream_->Finish(); }

 private:
  std::unique_ptr<v1::Coordinator::Stub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::AgentMessage, v1::CoordinatorMessage>> stream_;
  v1::CoordinatorMessage registered_;
};

// Any method, by name and bytes: health checking and reflection have no generated client here.
grpc::Status CallByName(const RunningCoordinator& coordinator, const std::string& method,
                        const std::string& request, grpc::ClientContext* context,
                        std::string* response) {
  grpc::GenericStub stub(coordinator.channel());
  const grpc::Slice slice(request);
  grpc::ByteBuffer sent(&slice, 1);
  grpc::ByteBuffer received;
  std::mutex mutex;
  std::condition_variable done;
  bool finished = false;
  grpc::Status status;
  stub.UnaryCall(context, method, grpc::StubOptions(), &sent, &received, [&](grpc::Status result) {
    const std::lock_guard lock(mutex);
    status = std::move(result);
    finished = true;
    done.notify_one();
  });
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return finished; });
  std::vector<grpc::Slice> slices;
  if (received.Valid() && received.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) {
      response->append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
  }
  return status;
}

constexpr char kHealth[] = "/grpc.health.v1.Health/Check";
constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
const std::string kListServices("\x3a\x00", 2);  // list_services = ""

class CoordinatorServerTest : public ::testing::Test {
 protected:
  std::string State() const { return folder_ / "state"; }
  std::string Log() const { return ReadWhole(State() + "/log"); }

  v1::SubmitRunRequest Submission(const std::string& run_id) const {
    v1::SubmitRunRequest request;
    request.set_request_id("request-" + run_id);
    request.set_run_id(run_id);
    request.set_run_dir(folder_ / run_id);
    request.set_corpus_digest("digest");
    request.set_corpus_samples(1000);
    request.set_run_file(R"(
[run]
name = "test"
member = "uni-a"
project = "demo"
[model]
vocab_size = 256
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
intermediate_size = 64
[data]
train = "/corpus"
[train]
sequence_length = 32
global_batch_size = 8
micro_batch_size = 1
steps = 10
learning_rate = 1e-3
[launch]
nodes = 4
slots_per_node = 2
)");
    std::filesystem::create_directories(request.run_dir());
    return request;
  }

  static grpc::Status Submit(const RunningCoordinator& coordinator,
                             const v1::SubmitRunRequest& request) {
    v1::SubmitRunResponse response;
    return v1::Runs::NewStub(coordinator.channel())
        ->SubmitRun(coordinator.Context().get(), request, &response);
  }

  static grpc::Status GetRun(const RunningCoordinator& coordinator, const std::string& run_id,
                             v1::RunStatus* status) {
    v1::GetRunRequest request;
    request.set_run_id(run_id);
    return v1::Runs::NewStub(coordinator.channel())
        ->GetRun(coordinator.Context().get(), request, status);
  }

  TempFolder folder_;
};

TEST_F(CoordinatorServerTest, CallWithoutTheTokenIsRefusedWhateverItsService) {
  RunningCoordinator coordinator(State());
  coordinator.WaitUntilItListens();
  const std::string wrong(64, '0');
  for (const std::string& token : {std::string(), wrong}) {
    const auto runs = v1::Runs::NewStub(coordinator.channel());
    v1::ListRunsResponse listed;
    EXPECT_EQ(
        runs->ListRuns(RunningCoordinator::ContextWith(token).get(), {}, &listed).error_code(),
        grpc::StatusCode::UNAUTHENTICATED);
    const auto agents = v1::Coordinator::NewStub(coordinator.channel());
    const auto context = RunningCoordinator::ContextWith(token);
    EXPECT_EQ(agents->AgentSession(context.get())->Finish().error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
    std::string response;
    EXPECT_EQ(CallByName(coordinator, kHealth, "", RunningCoordinator::ContextWith(token).get(),
                         &response)
                  .error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(CallByName(coordinator, kReflection, kListServices,
                         RunningCoordinator::ContextWith(token).get(), &response)
                  .error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(response, "");
  }
}

TEST_F(CoordinatorServerTest, HealthAndReflectionAnswer) {
  RunningCoordinator coordinator(State());
  coordinator.WaitUntilItListens();
  std::string health;
  const grpc::Status checked =
      CallByName(coordinator, kHealth, "", coordinator.Context().get(), &health);
  EXPECT_TRUE(checked.ok()) << checked.error_message();
  EXPECT_EQ(health, std::string("\x08\x01", 2)) << "status = SERVING";

  std::string services;
  const grpc::Status listed =
      CallByName(coordinator, kReflection, kListServices, coordinator.Context().get(), &services);
  EXPECT_TRUE(listed.ok()) << listed.error_message();
  EXPECT_THAT(services, HasSubstr("paceline.v1.Coordinator"));
  EXPECT_THAT(services, HasSubstr("paceline.v1.Runs"));
}

TEST_F(CoordinatorServerTest, MetricsPassPromtoolAndDiscoveryListsEveryAgent) {
  RunningCoordinator coordinator(State());
  coordinator.WaitUntilItListens();
  ASSERT_TRUE(Submit(coordinator, Submission("run-1")).ok());
  const Node first(coordinator, "node-0");
  const Node second(coordinator, "node-1");
  ASSERT_TRUE(first.registered().has_registered());
  ASSERT_TRUE(second.registered().has_registered());

  const auto metrics = coordinator.Get("/metrics");
  ASSERT_TRUE(metrics);
  EXPECT_EQ(metrics->status, 200);
  EXPECT_THAT(metrics->body, HasSubstr("paceline_coordinator_nodes 2\n"));
  EXPECT_THAT(metrics->body, HasSubstr("paceline_coordinator_epoch 1\n"));
  EXPECT_THAT(metrics->body, HasSubstr("paceline_run_info{run_id=\"run-1\""));
  EXPECT_THAT(metrics->body,
              HasSubstr("paceline_run_state{run_id=\"run-1\",state=\"waiting\"} 1\n"));
  WriteWhole(folder_ / "metrics.txt", metrics->body);
  auto promtool = Process::Start(
      {.argv = {"/bin/sh", "-c", "exec promtool check metrics < " + (folder_ / "metrics.txt")},
       .log_path = folder_ / "promtool.log"});
  ASSERT_TRUE(promtool.ok()) << promtool.status();
  const auto checked = (*promtool)->WaitFor(kLimit);
  ASSERT_TRUE(checked);
  EXPECT_TRUE(checked->clean()) << ReadWhole(folder_ / "promtool.log");
  EXPECT_EQ(ReadWhole(folder_ / "promtool.log"), "");

  const auto discovery = coordinator.Get("/service-discovery");
  ASSERT_TRUE(discovery);
  EXPECT_EQ(discovery->status, 200);
  EXPECT_EQ(discovery->get_header_value("Content-Type"), "application/json");
  std::vector<std::string> nodes;
  std::vector<std::string> targets;
  for (const nlohmann::json& entry : nlohmann::json::parse(discovery->body)) {
    targets.push_back(entry["targets"][0]);
    if (entry["labels"].contains("node")) nodes.push_back(entry["labels"]["node"]);
  }
  EXPECT_THAT(nodes, ::testing::UnorderedElementsAre("node-0", "node-1"));
  EXPECT_THAT(targets, Contains(coordinator.info()["metrics_address"].get<std::string>()));
}

TEST_F(CoordinatorServerTest, KilledCoordinatorGoesOnWhereItWasInTheNextEpoch) {
  v1::RunStatus before;
  std::uint64_t node_id = 0;
  {
    RunningCoordinator coordinator(State());
    coordinator.WaitUntilItListens();
    ASSERT_TRUE(Submit(coordinator, Submission("run-1")).ok());
    const Node node(coordinator, "node-0");
    EXPECT_EQ(node.registered().epoch(), 1u);
    node_id = node.registered().registered().node_id();
    ASSERT_TRUE(GetRun(coordinator, "run-1", &before).ok());
    const auto run_file = nlohmann::json::parse(ReadWhole(folder_ / "run-1/coordinator.json"));
    EXPECT_EQ(run_file, coordinator.info());
    coordinator.KillNow();
  }
  const std::string journal = State() + "/epoch-00000001.journal";
  const std::string whole = ReadWhole(journal);
  WriteWhole(journal, whole + "half a record");

  RunningCoordinator coordinator(State());
  coordinator.WaitUntilItListens();

  EXPECT_EQ(coordinator.info()["epoch"], 2);
  EXPECT_EQ(ReadWhole(journal), whole);
  EXPECT_THAT(Log(), HasSubstr("cut a torn tail of 13 bytes"));
  v1::RunStatus after;
  ASSERT_TRUE(GetRun(coordinator, "run-1", &after).ok());
  EXPECT_EQ(after.state(), v1::RUN_STATE_WAITING);
  EXPECT_EQ(after.name(), before.name());
  EXPECT_EQ(nlohmann::json::parse(ReadWhole(folder_ / "run-1/coordinator.json")),
            coordinator.info());
  const Node again(coordinator, "node-0");
  EXPECT_EQ(again.registered().epoch(), 2u);
  EXPECT_EQ(again.registered().registered().node_id(), node_id);
  // The reply to the first submission might have been lost: a repeat is harmless.
  EXPECT_TRUE(Submit(coordinator, Submission("run-1")).ok());
}

TEST_F(CoordinatorServerTest, BadSubmissionsNameTheFieldAndLoseNothing) {
  RunningCoordinator coordinator(State());
  coordinator.WaitUntilItListens();
  v1::SubmitRunRequest request = Submission("run-1");
  request.set_run_file("[model]\nvocab_sizes = 3\n");
  const grpc::Status unparsable = Submit(coordinator, request);
  EXPECT_EQ(unparsable.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(unparsable.error_message(), HasSubstr("vocab_sizes"));
  request = Submission("run-1");
  request.set_run_file(std::string(2 << 20, '#'));
  const grpc::Status too_long = Submit(coordinator, request);
  EXPECT_EQ(too_long.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(too_long.error_message(), HasSubstr("run_file"));
  v1::RunStatus status;
  EXPECT_EQ(GetRun(coordinator, "run-1", &status).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Submit(coordinator, Submission("run-1")).ok());
}

TEST_F(CoordinatorServerTest, NewerIncarnationEndsTheOlderOnesStream) {
  RunningCoordinator coordinator(State());
  coordinator.WaitUntilItListens();
  Node older(coordinator, "node-0");
  ASSERT_TRUE(older.registered().has_registered());
  const auto stub = v1::Coordinator::NewStub(coordinator.channel());
  const auto context = coordinator.Context();
  const auto stream = stub->AgentSession(context.get());
  v1::AgentMessage message;
  message.set_incarnation(2);
  message.mutable_register_()->set_name("node-0");
  message.mutable_register_()->set_incarnation(2);
  message.mutable_register_()->set_slots(2);
  message.mutable_register_()->set_protocol_version(1);
  ASSERT_TRUE(stream->Write(message));
  v1::CoordinatorMessage answer;
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_TRUE(answer.has_registered());
  EXPECT_EQ(older.Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  context->TryCancel();
}

TEST_F(CoordinatorServerTest, TerminatedCoordinatorEndsCleanlyAndTakesItsFilesAlong) {
  RunningCoordinator coordinator(State());
  coordinator.WaitUntilItListens();
  ASSERT_TRUE(Submit(coordinator, Submission("run-1")).ok());
  Node node(coordinator, "node-0");
  ASSERT_TRUE(std::filesystem::exists(folder_ / "run-1/coordinator.json"));

  EXPECT_EQ(coordinator.Terminate(), 0);

  EXPECT_EQ(node.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(std::filesystem::exists(State() + "/coordinator.json"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run-1/coordinator.json"));
  EXPECT_THAT(Log(), HasSubstr("snapshot of the state"));

  RunningCoordinator next(State());
  next.WaitUntilItListens();
  v1::RunStatus status;
  EXPECT_TRUE(GetRun(next, "run-1", &status).ok());
}

TEST_F(CoordinatorServerTest, SecondCoordinatorOnTheFolderIsRefused) {
  RunningCoordinator first(State());
  first.WaitUntilItListens();
  const std::string info = ReadWhole(State() + "/coordinator.json");
  auto second = Process::Start(
      {.argv = {Program(), "--state-dir", State()}, .log_path = folder_ / "second.log"});
  ASSERT_TRUE(second.ok());
  const auto exit = (*second)->WaitFor(kLimit);
  ASSERT_TRUE(exit);
  EXPECT_EQ(exit->exit_code, kBadInput);
  EXPECT_THAT((*second)->stderr_tail().back(), HasSubstr("another coordinator"));
  EXPECT_EQ(ReadWhole(State() + "/coordinator.json"), info);
  v1::RunStatus status;
  EXPECT_EQ(GetRun(first, "none", &status).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(CoordinatorServerTest, StandbyTakesOverFromAKilledLeader) {
  RunningCoordinator leader(State());
  leader.WaitUntilItListens();
  ASSERT_TRUE(Submit(leader, Submission("run-1")).ok());
  auto standby = Process::Start({.argv = {Program(), "--state-dir", State(), "--standby"},
                                 .log_path = folder_ / "standby.log"});
  ASSERT_TRUE(standby.ok());
  std::filesystem::remove(State() + "/coordinator.json");
  leader.KillNow();
  ASSERT_TRUE(WaitForFile(State() + "/coordinator.json"));
  const auto info = nlohmann::json::parse(ReadWhole(State() + "/coordinator.json"));
  EXPECT_EQ(info["pid"], (*standby)->pid());
  EXPECT_EQ(info["epoch"], 2);
  EXPECT_EQ(ReadWhole(State() + "/coordinator.json"),
            ReadWhole(folder_ / "run-1/coordinator.json"));
  (*standby)->Signal(SIGTERM);
  const auto exit = (*standby)->WaitFor(kLimit);
  ASSERT_TRUE(exit);
  EXPECT_TRUE(exit->clean()) << ReadWhole(folder_ / "standby.log");
}

TEST_F(CoordinatorServerTest, StandbyThatIsAskedToEndWhileItWaitsEndsCleanly) {
  RunningCoordinator leader(State());
  leader.WaitUntilItListens();
  auto standby = Process::Start({.argv = {Program(), "--state-dir", State(), "--standby"},
                                 .log_path = folder_ / "standby.log"});
  ASSERT_TRUE(standby.ok());
  (*standby)->Signal(SIGTERM);
  const auto exit = (*standby)->WaitFor(kLimit);
  ASSERT_TRUE(exit);
  EXPECT_FALSE(std::filesystem::exists(State() + "/epoch-00000002.journal"));
  v1::RunStatus status;
  EXPECT_EQ(GetRun(leader, "none", &status).error_code(), grpc::StatusCode::NOT_FOUND);
}

// A client that still speaks to it hears no old truth, and it changes no file.
TEST_F(CoordinatorServerTest, StoppedLeaderIsReplacedAndEndsWhenItGoesOn) {
  RunningCoordinator leader(State(), {"--budget-ms", "500"});
  leader.WaitUntilItListens();
  const v1::SubmitRunRequest submission = Submission("run-1");
  ASSERT_TRUE(Submit(leader, submission).ok());
  leader.Stop();
  RunningCoordinator next(State(), {"--standby"}, folder_ / "next.log");
  next.WaitUntilItListens();
  EXPECT_EQ(next.info()["epoch"], 2);
  const std::string info = ReadWhole(folder_ / "run-1/coordinator.json");
  // Nothing is journaled for a repeat: the answer alone, and coordinator.json, would be old.
  grpc::Status repeat;
  std::thread client([&] { repeat = Submit(leader, submission); });
  leader.Continue();
  EXPECT_EQ(leader.ExitCode(), kRetry);
  client.join();
  EXPECT_FALSE(repeat.ok());
  EXPECT_THAT(ReadWhole(State() + "/log"), HasSubstr("leads no more"));
  EXPECT_EQ(ReadWhole(folder_ / "run-1/coordinator.json"), info);
  EXPECT_TRUE(Submit(next, submission).ok());
}

TEST_F(CoordinatorServerTest, PortInUseIsRefusedByName) {
  const int taken = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(taken, 1), 0);
  ASSERT_EQ(::getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string text = "127.0.0.1:" + std::to_string(::ntohs(address.sin_port));
  for (const std::string flag : {"--listen", "--metrics-listen"}) {
    RunningCoordinator coordinator(State(), {flag, text});
    EXPECT_EQ(coordinator.ExitCode(), kBadInput) << flag;
    EXPECT_THAT(coordinator.LastLine(), HasSubstr(text)) << flag;
    EXPECT_FALSE(std::filesystem::exists(State() + "/coordinator.json"));
  }
  ::close(taken);
}

TEST_F(CoordinatorServerTest, AddressBeyondLoopbackIsRefusedNamingTheFlag) {
  for (const std::string flag : {"--listen", "--metrics-listen"}) {
    RunningCoordinator coordinator(State(), {flag, "0.0.0.0:0"});
    EXPECT_EQ(coordinator.ExitCode(), kBadInput);
    EXPECT_THAT(coordinator.LastLine(), HasSubstr(flag));
    EXPECT_THAT(coordinator.LastLine(), HasSubstr("loopback"));
  }
}

// A file-size limit stands for the full disk. What was answered OK before is there afterwards.
TEST_F(CoordinatorServerTest, JournalThatCannotBeWrittenStopsTheCoordinatorWithoutAnAnswer) {
  std::filesystem::create_directories(State());
  auto process = Process::Start(
      {.argv = {"/bin/sh", "-c",
                "trap '' XFSZ; ulimit -f 16; exec " + Program() + " --state-dir " + State()},
       .log_path = folder_ / "log"});
  ASSERT_TRUE(process.ok());
  ASSERT_TRUE(WaitForFile(State() + "/coordinator.json"));
  const auto info = nlohmann::json::parse(ReadWhole(State() + "/coordinator.json"));
  const auto stub =
      v1::Runs::NewStub(grpc::CreateChannel(info["address"], grpc::InsecureChannelCredentials()));
  const std::string token = ReadToken(info["token_file"]).value();
  std::vector<std::string> accepted;
  grpc::Status status;
  for (int i = 0; status.ok() && i < 100; ++i) {
    v1::SubmitRunRequest request = Submission("run-" + std::to_string(i));
    v1::SubmitRunResponse response;
    status = stub->SubmitRun(RunningCoordinator::ContextWith(token).get(), request, &response);
    if (status.ok()) accepted.push_back(request.run_id());
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const auto exit = (*process)->WaitFor(kLimit);
  ASSERT_TRUE(exit);
  EXPECT_EQ(exit->exit_code, kBroken);
  EXPECT_THAT((*process)->stderr_tail().back(), HasSubstr("the journal has failed"));
  ASSERT_FALSE(accepted.empty());

  RunningCoordinator next(State());
  next.WaitUntilItListens();
  for (const std::string& run_id : accepted) {
    v1::RunStatus found;
    EXPECT_TRUE(GetRun(next, run_id, &found).ok()) << run_id;
  }
}

}  // namespace
}  // namespace paceline
