#include "worker/agent/agent.h"

#include <prometheus/metric_family.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <future>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/address.h"
#include "common/clock.h"
#include "common/http_server.h"
#include "common/metrics_text.h"
#include "common/process.h"
#include "common/protocol.h"
#include "worker/agent/agent_core.h"
#include "worker/agent/coordinator_link.h"
#include "worker/agent/mailbox.h"
#include "worker/agent/record_writer.h"
#include "worker/agent/self_test.h"
#include "worker/agent/snapshot_copier.h"
#include "worker/agent/snapshot_folder.h"
#include "worker/agent/snapshot_server.h"
#include "worker/agent/socket_folder.h"
#include "worker/agent/worker_server.h"
#include "worker/telemetry/agent_metrics.h"

namespace paceline {
namespace {

constexpr std::size_t kMailsMax = 1024;
constexpr int kSlotsMax = 256;
constexpr std::chrono::milliseconds kFarewell{1000};
constexpr std::size_t kRecordsMax = 65536;  // lines that wait for the disk, some 10 MiB
constexpr std::chrono::milliseconds kLastRecords{5000};
// How long an agent whose MPI job has ended waits to be released: longer than a coordinator takes
// to be started again.
constexpr std::chrono::seconds kJobFarewell{10};
constexpr std::chrono::seconds kLookAtJob{1};

std::string HostName() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

std::string NameOf(const v1::GenerationKey& key) {
  return "run " + key.run_id() + " generation " + std::to_string(key.generation());
}

std::string NameOf(const v1::GenerationKey& key, std::optional<int> rank) {
  if (!rank.has_value()) return "run " + key.run_id() + ", kept warm";
  return NameOf(key) + " rank " + std::to_string(*rank);
}

absl::Status Check(const AgentOptions& options) {
  if (options.coordinator.empty() == options.coordinator_file.empty()) {
    return absl::InvalidArgumentError("give either --coordinator or --coordinator-file");
  }
  const bool plain = std::all_of(options.name.begin(), options.name.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
  });
  if (options.name.empty() || options.name.front() == '.' || !plain) {
    return absl::InvalidArgumentError("--name \"" + options.name +
                                      "\": use letters, digits, '-', '_' and '.'");
  }
  if (options.slots < 1 || options.slots > kSlotsMax) {
    return absl::InvalidArgumentError("--slots " + std::to_string(options.slots) + ": give 1 to " +
                                      std::to_string(kSlotsMax));
  }
  RETURN_IF_ERROR(CheckOwnAddress("--address", options.address));
  if (options.adopt_from == 0 && ::access(options.worker.c_str(), X_OK) != 0) {
    return absl::InvalidArgumentError("--worker " + options.worker +
                                      ": is not a program that can be started");
  }
  return absl::OkStatus();
}

}  // namespace

struct Agent::Impl {
  struct Mail {
    AgentEvent event;
    std::shared_ptr<std::promise<bool>> accepted;  // of a Hello
  };
  using Mails = Mailbox<Mail>;
  // A seat whose worker is not started here: its plan and the worker, whichever came first.
  struct Adoption {
    std::optional<SpawnWorker> planned;
    std::optional<Mail> hello;
    bool done = false;  // an MPI job has one worker for a seat
  };

  Impl(AgentOptions given, SocketFolder folder, std::uint64_t incarnation_ms)
      : options(std::move(given)),
        incarnation(incarnation_ms),
        socket(std::move(folder)),
        core(options.name, options.slots, incarnation_ms, options.snapshot_root,
             FindSnapshots(options.snapshot_root, options.run_id, options.name)),
        removal(options.snapshot_root, options.name),
        records(kRecordsMax,
                [mails = mailbox](std::uint64_t number, absl::Status status) {
                  if (!status.ok()) {
                    spdlog::error("a line of the run's records is lost: {}", status.ToString());
                  }
                  mails->Push({RecordWritten{number, std::move(status)}, nullptr});
                }),
        processes(static_cast<std::size_t>(AgentCore::SeatsFor(options.slots))),
        adoptions(processes.size()) {}

  absl::Status Start();
  absl::Status StartSnapshots();
  void Connect();
  bool OnWorkerMessage(int seat, std::uint64_t session, v1::WorkerMessage message);
  void Take(Mail mail);
  bool Prepare(AgentEvent& event);
  void Handle(const AgentEvent& event);
  void HandleFollowUps();
  void AdoptIfReady(int seat);
  void EndWithJob();
  bool adopts() const { return options.adopt_from != 0; }
  AgentView View();
  void Stop();

  void Do(const TellCoordinator& action);
  void Do(const DropCoordinator& action);
  void Do(const SpawnWorker& action);
  void Spawn(const SpawnWorker& action);
  void Do(const SwitchLog& action) {
    ProcessIn(action.seat)->SwitchLog(action.log_path, LogHeader(action.key, action.rank));
  }
  void Do(const BeginSelfTest& action);
  std::string LogHeader(const v1::GenerationKey& key, std::optional<int> rank) const {
    return "--- " + NameOf(key, rank) + " on node " + options.name;
  }
  void Do(const TellWorker& action) { server->Send(action.seat, action.command); }
  void Do(const KillWorker& action);
  void Do(const AppendRecord& action);
  void Do(const CopySnapshots& action) {
    if (copier != nullptr) copier->Copy(action);
  }
  void Do(const FetchSnapshots& action);
  void Do(const StopCopying& action) {
    if (copier != nullptr) copier->Stop(action.key);
  }
  void Do(const RemoveSnapshots& action) { removal.Remove(action.run_id); }
  void Do(const RemoveSnapshotFiles& action) { removal.Remove(action.run_id, action.files); }
  void Do(const EndAgent& action) { end = action; }
  std::unique_ptr<Process>& ProcessIn(int seat) {
    return processes[static_cast<std::size_t>(seat)];
  }

  const AgentOptions options;
  const std::uint64_t incarnation;
  SocketFolder socket;
  // Shared with the record writer, whose thread a stuck disk may keep beyond the agent's end.
  const std::shared_ptr<Mails> mailbox = std::make_shared<Mails>(kMailsMax);
  std::mutex core_mutex;  // between the loop and a scrape; Handle neither waits nor does I/O
  AgentCore core;
  std::atomic<std::int64_t> reconnect_max_ms{1000};
  SnapshotRemoval removal;
  std::unique_ptr<SnapshotServer> snapshots;  // null: others read none here, and
  std::unique_ptr<SnapshotCopier> copier;     // none are read from others
  std::unique_ptr<WorkerServer> server;
  std::unique_ptr<HttpServer> http;
  std::unique_ptr<CoordinatorLink> link;

  // The loop's alone.
  RecordWriter records;
  std::vector<std::unique_ptr<Process>> processes;  // by seat; from the launch to the end
  std::vector<Adoption> adoptions;                  // by seat
  std::unique_ptr<Process> job;                     // adopt_from; null: there is no MPI job
  std::optional<SteadyTime> job_ended_at;
  std::deque<AgentEvent> follow_ups;  // what actions led to at once
  std::optional<EndAgent> end;
};

absl::Status Agent::Impl::Start() {
  if (adopts()) {
    ASSIGN_OR_RETURN(job, Process::Adopt(options.adopt_from, "", nullptr));
  }
  ASSIGN_OR_RETURN(
      server,
      WorkerServer::Start({.socket_path = socket.socket_path(),
                           .seats = AgentCore::SeatsFor(options.slots),
                           .on_message =
                               [this](int seat, std::uint64_t session, v1::WorkerMessage message) {
                                 return OnWorkerMessage(seat, session, std::move(message));
                               },
                           .on_closed =
                               [this](int seat, std::uint64_t session) {
                                 mailbox->Push({WorkerSessionClosed{seat, session}, nullptr});
                               }}));
  RETURN_IF_ERROR(StartSnapshots());
  ASSIGN_OR_RETURN(http, HttpServer::Start(options.metrics_listen,
                                           {{"/metrics", [this] {
                                               return MetricsResponse(AgentMetricFamilies(
                                                   View(), HostName(), options.version));
                                             }}}));
  return absl::OkStatus();
}

// Without the secret that keeps others out none are served.
absl::Status Agent::Impl::StartSnapshots() {
  if (options.snapshot_root.empty() || options.token_file.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(snapshots, SnapshotServer::Start({.ip = options.address,
                                                     .token_file = options.token_file,
                                                     .root = options.snapshot_root,
                                                     .node = options.name}));
  const auto push = [this](auto event) { mailbox->Push({std::move(event), nullptr}); };
  copier = std::make_unique<SnapshotCopier>(SnapshotCopierOptions{.token_file = options.token_file,
                                                                  .root = options.snapshot_root,
                                                                  .node = options.name,
                                                                  .on_lost = push,
                                                                  .on_copied = push,
                                                                  .on_fetched = push});
  return absl::OkStatus();
}

void Agent::Impl::Connect() {
  v1::AgentMessage registration;
  registration.set_incarnation(incarnation);
  v1::RegisterNode& node = *registration.mutable_register_();
  node.set_name(options.name);
  node.set_incarnation(incarnation);
  node.set_host(HostName());
  node.set_slots(options.slots);
  node.set_pid(::getpid());
  node.set_metrics_address(http->address());
  node.set_protocol_version(kNodeProtocolVersion);
  node.set_run_id(options.run_id);
  if (snapshots != nullptr) node.set_snapshot_address(snapshots->address());
  for (v1::GenerationGone& left : core.LeftBehind()) *node.add_left_behind() = std::move(left);
  link = std::make_unique<CoordinatorLink>(CoordinatorLinkOptions{
      .address = options.coordinator,
      .coordinator_file = options.coordinator_file,
      .token_file = options.token_file,
      .registration = std::move(registration),
      .on_message =
          [this](v1::CoordinatorMessage message) {
            mailbox->Push({CoordinatorSaid{std::move(message)}, nullptr});
          },
      .on_lost =
          [this](absl::Status reason) {
            mailbox->Push({CoordinatorLost{std::move(reason)}, nullptr});
          },
      .reconnect_max = [this] { return std::chrono::milliseconds(reconnect_max_ms.load()); }});
}

// A worker's first message waits until the loop has compared its process with the seat's, so that
// nothing is ever sent to a process that an earlier agent or generation left.
bool Agent::Impl::OnWorkerMessage(int seat, std::uint64_t session, v1::WorkerMessage message) {
  const bool hello = message.has_hello();
  auto accepted = hello ? std::make_shared<std::promise<bool>>() : nullptr;
  if (!mailbox->Push({WorkerSaid{seat, session, std::move(message), {}}, accepted})) return false;
  return !hello || accepted->get_future().get();
}

void Agent::Impl::Take(Mail mail) {
  const auto* said = std::get_if<WorkerSaid>(&mail.event);
  if (adopts() && said != nullptr && said->message.has_hello()) {
    const int seat = said->seat;
    std::optional<Mail>& waiting = adoptions[static_cast<std::size_t>(seat)].hello;
    if (waiting.has_value()) waiting->accepted->set_value(false);
    waiting = std::move(mail);
    AdoptIfReady(seat);
    return HandleFollowUps();
  }
  const bool accepted = Prepare(mail.event);
  if (accepted) Handle(mail.event);
  if (mail.accepted != nullptr) mail.accepted->set_value(accepted);
}

// Adds what only the loop knows. False: the event is refused.
bool Agent::Impl::Prepare(AgentEvent& event) {
  if (auto* said = std::get_if<WorkerSaid>(&event)) {
    const std::unique_ptr<Process>& process = ProcessIn(said->seat);
    if (said->message.has_hello()) {
      return process != nullptr && process->pid() == said->message.hello().pid();
    }
    if (said->message.has_failed() && process != nullptr) {
      said->stderr_tail = process->stderr_tail();
    }
    if (said->message.has_snapshot() && snapshots != nullptr) snapshots->OnTaken();
  } else if (auto* exited = std::get_if<WorkerExited>(&event)) {
    std::unique_ptr<Process>& process = ProcessIn(exited->seat);
    exited->stderr_tail = process->stderr_tail();
    process.reset();
    spdlog::info("the worker in seat {} ended with {}", exited->seat, ToString(exited->exit));
  } else if (const auto* failed = std::get_if<WorkerNotSpawned>(&event)) {
    ProcessIn(failed->seat).reset();
    spdlog::error("no worker started in seat {}: {}", failed->seat, failed->reason.ToString());
  } else if (const auto* lost = std::get_if<CoordinatorLost>(&event)) {
    spdlog::debug("no coordinator: {}", lost->reason.ToString());
  } else if (const auto* shutdown = std::get_if<ShutdownAsked>(&event)) {
    spdlog::info("asked to end: {}", shutdown->reason);
  }
  return true;
}

void Agent::Impl::Handle(const AgentEvent& event) {
  std::vector<AgentAction> actions;
  bool was_registered = false;
  bool is_registered = false;
  {
    const std::lock_guard lock(core_mutex);
    was_registered = core.registered();
    actions = core.Handle(event, ReadClock());
    is_registered = core.registered();
    reconnect_max_ms = core.timeouts().reconnect_max.count();
  }
  if (was_registered != is_registered) {
    const auto* lost = std::get_if<CoordinatorLost>(&event);
    if (is_registered) {
      spdlog::info("registered with the coordinator");
    } else {
      spdlog::warn("the coordinator is away, workers go on{}",
                   lost == nullptr ? "" : ": " + lost->reason.ToString());
    }
  }
  for (const AgentAction& action : actions) {
    std::visit([this](const auto& specific) { Do(specific); }, action);
  }
  HandleFollowUps();
}

void Agent::Impl::HandleFollowUps() {
  while (!follow_ups.empty()) {
    const AgentEvent next = std::move(follow_ups.front());
    follow_ups.pop_front();
    Handle(next);
  }
}

AgentView Agent::Impl::View() {
  const std::lock_guard lock(core_mutex);
  return core.View();
}

void Agent::Impl::Do(const TellCoordinator& action) {
  if (action.message.has_failed()) {
    spdlog::error("rank {} of {} failed: {}", action.message.failed().rank(),
                  NameOf(action.message.failed().key()), action.message.failed().error());
  }
  link->Send(action.message, action.newest_only);
}

void Agent::Impl::Do(const DropCoordinator& action) {
  spdlog::warn("not obeying this coordinator: {}", action.reason);
  link->Drop();
}

void Agent::Impl::Do(const SpawnWorker& action) {
  if (!adopts()) return Spawn(action);
  Adoption& adoption = adoptions[static_cast<std::size_t>(action.seat)];
  if (adoption.done) {
    follow_ups.push_back(WorkerNotSpawned{
        action.seat, absl::UnavailableError("its worker has ended, and another comes with the "
                                            "next MPI job alone")});
    return;
  }
  adoption.planned = action;
  AdoptIfReady(action.seat);
}

// Makes the worker that has come the one of its seat, once the plan has come too.
void Agent::Impl::AdoptIfReady(int seat) {
  Adoption& adoption = adoptions[static_cast<std::size_t>(seat)];
  if (!adoption.planned.has_value() || !adoption.hello.has_value()) return;
  const SpawnWorker planned = *std::exchange(adoption.planned, std::nullopt);
  const Mail hello = *std::exchange(adoption.hello, std::nullopt);
  const pid_t pid = std::get<WorkerSaid>(hello.event).message.hello().pid();
  adoption.done = true;
  absl::StatusOr<std::unique_ptr<Process>> process =
      Process::Adopt(pid, planned.log_path, [this, seat](const ProcessExit& exit) {
        mailbox->Push({WorkerExited{seat, exit, {}}, nullptr});
      });
  if (process.ok()) {
    spdlog::info("{}: adopted the worker in seat {}, pid {}", NameOf(planned.key, planned.rank),
                 seat, pid);
    ProcessIn(seat) = *std::move(process);
    follow_ups.push_back(hello.event);
  } else {
    follow_ups.push_back(WorkerNotSpawned{seat, process.status()});
  }
  hello.accepted->set_value(ProcessIn(seat) != nullptr);
}

// The process's own thread opens the log and forks: the loop goes on, and hears how it went.
void Agent::Impl::Spawn(const SpawnWorker& action) {
  const int seat = action.seat;
  const std::string what = NameOf(action.key, action.rank);
  absl::StatusOr<std::unique_ptr<Process>> process = Process::Launch(
      {.argv = {options.worker, "--agent-socket", socket.socket_path(), "--seat",
                std::to_string(seat), "--address", options.address},
       .log_path = action.log_path,
       .log_header = LogHeader(action.key, action.rank),
       .on_start =
           [this, seat, what](const absl::StatusOr<pid_t>& pid) {
             if (!pid.ok()) {
               mailbox->Push({WorkerNotSpawned{seat, pid.status()}, nullptr});
             } else {
               spdlog::info("{}: started a worker in seat {}, pid {}", what, seat, *pid);
             }
           },
       .on_exit =
           [this, seat](const ProcessExit& exit) {
             mailbox->Push({WorkerExited{seat, exit, {}}, nullptr});
           }});
  if (process.ok()) {
    ProcessIn(seat) = *std::move(process);
  } else {
    spdlog::error("{}: no worker started: {}", what, process.status().ToString());
    follow_ups.push_back(WorkerNotSpawned{seat, process.status()});
  }
}

void Agent::Impl::Do(const KillWorker& action) {
  std::unique_ptr<Process>& process = ProcessIn(action.seat);
  if (process == nullptr) {
    if (adoptions[static_cast<std::size_t>(action.seat)].planned.has_value()) {
      adoptions[static_cast<std::size_t>(action.seat)].planned.reset();
      follow_ups.push_back(
          WorkerNotSpawned{action.seat, absl::CancelledError("ended before it had come")});
    }
    return;
  }
  spdlog::info("killing the worker in seat {}", action.seat);
  if (!process->Cancel()) return process->Kill();
  // It may be stuck in a log that does not open: nobody waits for that.
  process.reset();
  follow_ups.push_back(
      WorkerNotSpawned{action.seat, absl::CancelledError("ended before it was started")});
}

// A disk may keep its thread for ever: it holds nothing but the mailbox, and nobody waits for it.
void Agent::Impl::Do(const BeginSelfTest& action) {
  const auto tell = [mails = mailbox, id = action.id](absl::Status status, double seconds) {
    mails->Push({SelfTested{id, std::move(status), seconds}, nullptr});
  };
  const std::string file =
      action.folder + "/.self-test-" + options.name + "-" + std::to_string(incarnation);
  try {
    std::thread([tell, file] {
      const SteadyTime begin = std::chrono::steady_clock::now();
      absl::Status status = RunSelfTest(file);
      tell(std::move(status), SecondsBetween(begin, std::chrono::steady_clock::now()));
    }).detach();
  } catch (const std::system_error& error) {
    tell(absl::ResourceExhaustedError(std::string("no more threads: ") + error.what()), 0);
  }
}

// A record that cannot be written stops no training; it is counted and said.
void Agent::Impl::Do(const AppendRecord& action) {
  absl::Status status = records.Append(action.path, action.line, action.number, action.unless_step);
  if (status.ok()) return;
  spdlog::error("a line of the run's records is lost: {}", status.ToString());
  follow_ups.push_back(RecordWritten{0, std::move(status)});
}

void Agent::Impl::Do(const FetchSnapshots& action) {
  if (copier != nullptr) return copier->Fetch(action);
  for (const v1::SnapshotSource& source : action.sources) {
    follow_ups.push_back(SnapshotFetched{
        action.key, source,
        absl::FailedPreconditionError("this agent was given no --token-file to read it with"), 0});
  }
}

// An agent that is not released when its MPI job has ended has lost its coordinator for good.
void Agent::Impl::EndWithJob() {
  if (job == nullptr || !job->exit().has_value()) return;
  const SteadyTime now = std::chrono::steady_clock::now();
  if (!job_ended_at.has_value()) job_ended_at = now;
  if (now < *job_ended_at + kJobFarewell) return;
  job.reset();
  Handle(ShutdownAsked{"its MPI job has ended"});
}

// The last words go out, and then threads that may still push into the mailbox are ended.
void Agent::Impl::Stop() {
  link->Finish(kFarewell);
  for (const Mail& mail : mailbox->Close()) {
    if (mail.accepted != nullptr) mail.accepted->set_value(false);
  }
  for (const Adoption& adoption : adoptions) {
    if (adoption.hello.has_value()) adoption.hello->accepted->set_value(false);
  }
  link.reset();
  copier.reset();
  snapshots.reset();
  server.reset();
  http.reset();
  processes.clear();
  job.reset();
  if (const absl::Status status = records.Finish(kLastRecords); !status.ok()) {
    spdlog::error("{}", status.ToString());
  }
}

Agent::Agent(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Agent::~Agent() = default;

absl::StatusOr<std::unique_ptr<Agent>> Agent::Create(AgentOptions options) {
  RETURN_IF_ERROR(Check(options));
  if (options.adopt_from != 0) options.snapshot_root.clear();  // its workers live once
  if (!options.snapshot_root.empty()) {
    if (const absl::Status own = PrepareSnapshotRoot(options.snapshot_root); !own.ok()) {
      spdlog::warn("no snapshots are taken: {}", own.ToString());
      options.snapshot_root.clear();
    }
  }
  ASSIGN_OR_RETURN(SocketFolder folder, SocketFolder::Make(options.state_dir, options.name));
  auto impl = std::make_unique<Impl>(std::move(options), std::move(folder),
                                     static_cast<std::uint64_t>(ReadClock().wall_ms));
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Agent>(new Agent(std::move(impl)));
}

const std::string& Agent::socket_path() const { return impl_->socket.socket_path(); }

ExitCode Agent::Run() {
  impl_->Connect();
  spdlog::info("node {} with {} slots, metrics at http://{}/metrics", impl_->options.name,
               impl_->options.slots, impl_->http->address());
  while (!impl_->end.has_value()) {
    const SteadyTime now = std::chrono::steady_clock::now();
    const SteadyTime deadline =
        std::min(impl_->core.NextDeadline(),
                 now + (impl_->adopts() ? kLookAtJob : std::chrono::seconds(60)));
    std::optional<Impl::Mail> mail = impl_->mailbox->Pop(deadline);
    if (mail.has_value()) impl_->Take(*std::move(mail));
    impl_->EndWithJob();
    if (std::chrono::steady_clock::now() >= impl_->core.NextDeadline()) impl_->Handle(Timer{});
  }
  impl_->Stop();
  const EndAgent& end = *impl_->end;
  spdlog::info("node {} ends: {}", impl_->options.name, end.reason);
  return end.code;
}

void Agent::Shutdown(const std::string& reason) {
  impl_->mailbox->Push({ShutdownAsked{reason}, nullptr});
}

}  // namespace paceline
