// The real coordinator with many real agent sessions: each a stream on a TCP connection of its own,
// over loopback. How long it takes until all have joined, until a run of them all has its plan, and
// until every rank has its peers' addresses; then what their heartbeats cost the coordinator.
//
//   streams_bench BIN_FOLDER [NODES [SECONDS]]      1000 nodes of one slot, 20 s of heartbeats
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/process.h"
#include "common/token.h"
#include "paceline/v1/coordinator.grpc.pb.h"
#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kLimit{120};  // of anything that is waited for
constexpr std::chrono::milliseconds kHeartbeat{1000};

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "streams_bench: %s\n", what.c_str());
  std::fflush(nullptr);
  ::_exit(1);  // the streams' threads live
}

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Paces what is sent; nobody is waited for.
void PauseUntil(Clock::time_point time) {
  std::mutex mutex;
  std::condition_variable never;
  std::unique_lock lock(mutex);
  never.wait_until(lock, time, [] { return false; });
}

// What all sessions have been told so far.
class Told {
 public:
  void Add(v1::CoordinatorMessage::BodyCase kind) {
    const std::lock_guard lock(mutex_);
    ++counts_[static_cast<std::size_t>(kind)];
    changed_.notify_all();
  }
  void Ended(const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    ended_ = absl::StrCat("a session ended: ", status.error_message());
    changed_.notify_all();
  }
  void WaitFor(v1::CoordinatorMessage::BodyCase kind, std::size_t count) {
    std::unique_lock lock(mutex_);
    const std::size_t& told = counts_[static_cast<std::size_t>(kind)];
    const bool all =
        changed_.wait_for(lock, kLimit, [&] { return !ended_.empty() || told >= count; });
    if (!ended_.empty()) Fail(ended_);
    if (!all) Fail(absl::StrCat(told, " of ", count, " messages of kind ", static_cast<int>(kind)));
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<std::size_t, 32> counts_ = {};
  std::string ended_;
};

class Session : public grpc::ClientBidiReactor<v1::AgentMessage, v1::CoordinatorMessage> {
 public:
  Session(const std::string& address, const std::string& token, Told& told) : told_(told) {
    grpc::ChannelArguments own_connection;
    own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    own_connection.SetMaxReceiveMessageSize(-1);
    stub_ = v1::Coordinator::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), own_connection));
    context_.AddMetadata("authorization", "Bearer " + token);
    stub_->async()->AgentSession(&context_, this);
    StartRead(&in_);
    StartCall();
  }

  void Say(v1::AgentMessage message) {
    message.set_incarnation(1);
    const std::lock_guard lock(mutex_);
    out_.push_back(std::move(message));
    if (out_.size() == 1) StartWrite(&out_.front());
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (!ok) return;
    out_.pop_front();
    if (!out_.empty()) StartWrite(&out_.front());
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (in_.has_start()) rank_ = in_.start().assignments(0).rank();
    told_.Add(in_.body_case());
    StartRead(&in_);
  }
  void OnDone(const grpc::Status& status) override { told_.Ended(status); }

  std::int32_t rank() const { return rank_; }  // that the node was told to start

 private:
  Told& told_;
  std::unique_ptr<v1::Coordinator::Stub> stub_;
  grpc::ClientContext context_;
  v1::CoordinatorMessage in_;
  std::atomic<std::int32_t> rank_{0};
  std::mutex mutex_;
  std::deque<v1::AgentMessage> out_;
};

// Of another process: processor seconds so far, and resident MB.
double CpuSecondsOf(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string field;
  double ticks = 0;
  for (int i = 1; file >> field && i <= 15; ++i) {
    if (i >= 14) ticks += std::stod(field);
  }
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

double ResidentMbOf(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/statm"));
  std::int64_t all = 0;
  std::int64_t resident = 0;
  file >> all >> resident;
  return static_cast<double>(resident * ::sysconf(_SC_PAGESIZE)) / 1e6;
}

v1::AgentMessage Registration(int node) {
  v1::AgentMessage message;
  v1::RegisterNode& info = *message.mutable_register_();
  info.set_name(absl::StrCat("node-", node));
  info.set_incarnation(1);
  info.set_host("here");
  info.set_slots(1);
  info.set_metrics_address("127.0.0.1:1");
  info.set_protocol_version(1);
  return message;
}

v1::SubmitRunRequest Submission(int nodes, const std::string& run_dir) {
  v1::SubmitRunRequest request;
  request.set_request_id("bench");
  request.set_run_id("run");
  request.set_run_dir(run_dir);
  request.set_corpus_digest("c0ffee");
  request.set_corpus_samples(1'000'000'000);
  request.set_run_file(absl::StrCat(
      "[run]\nname = \"bench\"\nmember = \"uni-a\"\nproject = \"demo\"\nseed = 7\n"
      "[model]\nvocab_size = 256\nhidden_size = 32\nnum_hidden_layers = 1\n"
      "num_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 16\nintermediate_size = 64\n"
      "[data]\ntrain = \"/corpus\"\n"
      "[train]\nsequence_length = 16\nmicro_batch_size = 1\nlearning_rate = 1e-3\nsteps = 1000000\n"
      "global_batch_size = ",
      nodes, "\n[launch]\nnodes = ", nodes, "\nslots_per_node = 1\n"));
  return request;
}

struct Server {
  std::unique_ptr<Process> process;
  std::string address;
  std::string token;
};

Server StartCoordinator(const std::string& bin, const std::string& folder) {
  Server server;
  auto started = Process::Start(
      {.argv = {bin + "/paceline-coordinator", "--state-dir", folder, "--listen", "127.0.0.1:0",
                "--metrics-listen", "127.0.0.1:0", "--log-level", "warning"},
       .log_path = folder + ".log"});
  if (!started.ok()) Fail(started.status().ToString());
  server.process = *std::move(started);
  const Clock::time_point begin = Clock::now();
  while (server.address.empty()) {
    if (SecondsSince(begin) > 30) Fail("the coordinator does not answer; see " + folder + ".log");
    PauseUntil(Clock::now() + std::chrono::milliseconds(10));
    const auto text = ReadFile(folder + "/coordinator.json", 1 << 20);
    if (!text.ok()) continue;
    const nlohmann::json json = nlohmann::json::parse(*text, nullptr, false);
    if (json.is_object()) server.address = json.value("address", "");
  }
  const auto token = ReadToken(folder + "/token");
  if (!token.ok()) Fail(token.status().ToString());
  server.token = *token;
  return server;
}

void Submit(const Server& server, const v1::SubmitRunRequest& request) {
  const auto stub =
      v1::Runs::NewStub(grpc::CreateChannel(server.address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + server.token);
  v1::SubmitRunResponse response;
  const grpc::Status status = stub->SubmitRun(&context, request, &response);
  if (!status.ok()) Fail(status.error_message());
}

v1::GenerationKey FirstGeneration() {
  v1::GenerationKey key;
  key.set_run_id("run");
  key.set_generation(1);
  return key;
}

// Each session's heartbeat once in kHeartbeat, spread evenly, until `seconds` are over or a stop is
// asked for.
void SendHeartbeats(std::vector<std::unique_ptr<Session>>& sessions, int seconds, bool of_ranks,
                    const std::stop_token& stop = {}) {
  const Clock::time_point begin = Clock::now();
  const auto count = static_cast<std::int64_t>(sessions.size());
  for (std::int64_t i = 0; i < seconds * count && !stop.stop_requested(); ++i) {
    PauseUntil(begin + kHeartbeat * i / count);
    Session& session = *sessions[static_cast<std::size_t>(i % count)];
    v1::AgentMessage message;
    v1::Heartbeat& heartbeat = *message.mutable_heartbeat();
    if (of_ranks) {
      v1::NodeProgress& progress = *heartbeat.add_progress();
      *progress.mutable_key() = FirstGeneration();
      v1::RankProgress& rank = *progress.add_ranks();
      rank.set_rank(session.rank());
      rank.set_step(i / count);
      rank.set_phase(v1::RANK_PHASE_STEP);
    }
    session.Say(std::move(message));
  }
}

void Bench(const std::string& bin, int nodes, int seconds) {
  const TempFolder folder;
  const Server server = StartCoordinator(bin, folder / "state");
  const pid_t pid = server.process->pid();
  const auto count = static_cast<std::size_t>(nodes);
  Told told;
  std::vector<std::unique_ptr<Session>> sessions;
  const double cpu_before = CpuSecondsOf(pid);
  Clock::time_point begin = Clock::now();
  for (int node = 0; node < nodes; ++node) {
    sessions.push_back(std::make_unique<Session>(server.address, server.token, told));
    sessions.back()->Say(Registration(node));
  }
  std::jthread alive([&sessions](const std::stop_token& stop) {
    SendHeartbeats(sessions, /*seconds=*/600, /*of_ranks=*/false, stop);
  });
  told.WaitFor(v1::CoordinatorMessage::kRegistered, count);
  std::printf("%d sessions registered: %.2f s, %.2f CPU s of the coordinator\n", nodes,
              SecondsSince(begin), CpuSecondsOf(pid) - cpu_before);

  double cpu = CpuSecondsOf(pid);
  begin = Clock::now();
  Submit(server, Submission(nodes, folder / "run"));
  told.WaitFor(v1::CoordinatorMessage::kStart, count);
  std::printf("a run of them all: every node has its plan %.2f s after the submission",
              SecondsSince(begin));
  for (const std::unique_ptr<Session>& session : sessions) {
    v1::AgentMessage message;
    *message.mutable_ready()->mutable_key() = FirstGeneration();
    message.mutable_ready()->set_rank(session->rank());
    message.mutable_ready()->set_address(
        absl::StrCat("192.168.100.100:", 10'000 + session->rank()));
    session->Say(std::move(message));
  }
  told.WaitFor(v1::CoordinatorMessage::kPeers, count);
  std::printf(", every rank its peers' addresses after %.2f s; %.2f CPU s\n", SecondsSince(begin),
              CpuSecondsOf(pid) - cpu);

  alive.request_stop();
  alive.join();
  cpu = CpuSecondsOf(pid);
  begin = Clock::now();
  SendHeartbeats(sessions, seconds, /*of_ranks=*/true);
  std::printf("%d heartbeats/s: %.1f %% of a core, resident %.0f MB\n", nodes,
              100 * (CpuSecondsOf(pid) - cpu) / SecondsSince(begin), ResidentMbOf(pid));
  if (server.process->exit().has_value()) Fail("the coordinator has ended");
  std::fflush(nullptr);
  server.process->Kill();
  server.process->Wait();
  std::error_code ignored;
  std::filesystem::remove_all(folder.path(), ignored);
  ::_exit(0);  // without a thousand farewells
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  int nodes = 1000;
  int seconds = 20;
  if (argc < 2 || (argc > 2 && !absl::SimpleAtoi(argv[2], &nodes)) ||
      (argc > 3 && !absl::SimpleAtoi(argv[3], &seconds)) || nodes < 1 || seconds < 1) {
    std::fprintf(stderr, "usage: streams_bench BIN_FOLDER [NODES [SECONDS]]\n");
    return 2;
  }
  rlimit files = {};
  ::getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
  paceline::Bench(argv[1], nodes, seconds);
}
