#include "launch/local/local_cluster.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "common/exit_code.h"
#include "common/files.h"
#include "common/snapshot_root.h"
#include "common/status.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How often coordinator.json is looked for while the coordinator starts.
constexpr milliseconds kLookInterval{10};

absl::StatusCode CodeFor(const ProcessExit& exit) {
  if (exit.exit_code == static_cast<int>(ExitCode::kBadInput)) {
    return absl::StatusCode::kInvalidArgument;
  }
  if (exit.exit_code == static_cast<int>(ExitCode::kBroken)) return absl::StatusCode::kDataLoss;
  return absl::StatusCode::kUnavailable;
}

}  // namespace

struct LocalCluster::Impl {
  struct Child {
    std::string name;
    std::string log_path;
    std::unique_ptr<Process> process;
    bool end_told = false;
  };

  ~Impl() {
    children.clear();  // before the descriptor that their threads write to
    if (event_fd >= 0) ::close(event_fd);
  }

  std::string Program(const char* name) const { return options.program_folder + "/" + name; }

  absl::Status StartChild(const std::string& name, std::vector<std::string> arguments) {
    Child child{.name = name, .log_path = options.log_folder + "/" + name + ".log"};
    ASSIGN_OR_RETURN(child.process, Process::Start({.argv = std::move(arguments),
                                                    .log_path = child.log_path,
                                                    .on_exit = [fd = event_fd](const ProcessExit&) {
                                                      const std::uint64_t one = 1;
                                                      [[maybe_unused]] const ssize_t written =
                                                          ::write(fd, &one, sizeof one);
                                                    }}));
    const auto place = std::find_if(children.begin(), children.end(),
                                    [&](const Child& other) { return other.name == name; });
    if (place != children.end()) {
      *place = std::move(child);
    } else {
      children.push_back(std::move(child));
    }
    return absl::OkStatus();
  }

  std::vector<std::string> CoordinatorCommand() const {
    return {Program("paceline-coordinator"), "--state-dir", options.state_folder, "--token-file",
            options.token_path};
  }

  absl::Status StartCoordinator(milliseconds timeout) {
    // What a former coordinator left names an address at which nobody answers, or somebody else.
    std::error_code ignored;
    std::filesystem::remove(options.coordinator_json, ignored);
    RETURN_IF_ERROR(StartChild(kCoordinator, CoordinatorCommand()));
    return WaitForCoordinator(timeout);
  }

  absl::Status RestartCoordinator() {
    std::vector<std::string> command = CoordinatorCommand();
    command.push_back("--standby");
    return StartChild(kCoordinator, std::move(command));
  }

  bool FindNextCoordinator() {
    absl::StatusOr<CoordinatorFile> file = ReadCoordinatorFile(options.coordinator_json);
    if (!file.ok() || file->epoch <= coordinator.epoch) return false;
    coordinator = *std::move(file);
    return true;
  }

  absl::Status WaitForCoordinator(milliseconds timeout) {
    const Child& child = children.front();
    const auto deadline = steady_clock::now() + timeout;
    while (true) {
      if (FindNextCoordinator()) return absl::OkStatus();
      if (const std::optional<ProcessExit> exit = child.process->exit()) {
        const std::vector<std::string> tail = child.process->stderr_tail();
        return absl::Status(CodeFor(*exit),
                            "the coordinator ended at its start (" + ToString(*exit) +
                                "): " + (tail.empty() ? "it said nothing" : tail.back()) +
                                "; its log is " + child.log_path);
      }
      if (steady_clock::now() >= deadline) {
        return absl::DeadlineExceededError("the coordinator did not answer within " +
                                           std::to_string(timeout.count()) + " ms; its log is " +
                                           child.log_path);
      }
      child.process->WaitFor(kLookInterval);
    }
  }

  absl::Status StartAgent(const std::string& name) {
    return StartChild(name,
                      {Program("paceline-agent"), "--coordinator-file", options.coordinator_json,
                       "--token-file", options.token_path, "--name", name, "--slots",
                       std::to_string(options.slots_per_node), "--run-id", options.run_id});
  }

  LocalClusterOptions options;
  int event_fd = -1;
  CoordinatorFile coordinator;
  std::vector<Child> children;  // the coordinator is the first
};

LocalCluster::LocalCluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

// Agents that were killed could not clear away their snapshots.
LocalCluster::~LocalCluster() {
  Kill();
  if (impl_->options.run_id.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(DefaultSnapshotRoot() + "/" + impl_->options.run_id, ignored);
}

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(LocalClusterOptions options,
                                                                  milliseconds timeout) {
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  impl->event_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (impl->event_fd < 0) return ErrnoStatus(errno, "eventfd");
  RETURN_IF_ERROR(impl->StartCoordinator(timeout));
  return std::unique_ptr<LocalCluster>(new LocalCluster(std::move(impl)));
}

absl::Status LocalCluster::StartNodes() {
  if (!impl_->options.job.empty()) return impl_->StartChild(kMpirun, impl_->options.job);
  for (std::int64_t node = 0; node < impl_->options.nodes; ++node) {
    RETURN_IF_ERROR(impl_->StartAgent("node-" + std::to_string(node)));
  }
  return absl::OkStatus();
}

absl::Status LocalCluster::RestartCoordinator() { return impl_->RestartCoordinator(); }

bool LocalCluster::FindNextCoordinator() { return impl_->FindNextCoordinator(); }

absl::Status LocalCluster::RestartNode(const std::string& name) { return impl_->StartAgent(name); }

const CoordinatorFile& LocalCluster::coordinator() const { return impl_->coordinator; }

std::vector<LocalCluster::Ended> LocalCluster::TakeEnded() {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(impl_->event_fd, &count, sizeof count);
  std::vector<Ended> ended;
  for (Impl::Child& child : impl_->children) {
    if (child.end_told) continue;
    if (const std::optional<ProcessExit> exit = child.process->exit()) {
      child.end_told = true;
      ended.push_back({child.name, *exit, child.log_path, child.process->stderr_tail()});
    }
  }
  return ended;
}

int LocalCluster::event_fd() const { return impl_->event_fd; }

bool LocalCluster::WaitForNodes(milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  for (std::size_t i = 1; i < impl_->children.size(); ++i) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now());
    if (!impl_->children[i].process->WaitFor(std::max(left, milliseconds{0}))) return false;
  }
  return true;
}

void LocalCluster::Stop(milliseconds timeout) {
  for (Impl::Child& child : impl_->children) child.process->Signal(SIGTERM);
  const auto deadline = steady_clock::now() + timeout;
  for (Impl::Child& child : impl_->children) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now());
    if (!child.process->WaitFor(std::max(left, milliseconds{0}))) child.process->Kill();
  }
}

void LocalCluster::Kill() {
  for (Impl::Child& child : impl_->children) child.process->Kill();
}

}  // namespace paceline
