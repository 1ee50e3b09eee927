#include "worker/mpi/node_agent.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/files.h"

namespace paceline {
namespace {

constexpr std::size_t kPathBytesMax = 4096;

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// What the forked child needs, made before: it may call nothing that allocates.
struct Plan {
  std::vector<char*> argv;
  std::vector<char*> envp;
  int null_fd = -1;
  int log_fd = -1;
  int path_fd = -1;  // the agent's stdout
};

[[noreturn]] void BecomeAgent(const Plan& plan) {
  ::setsid();
  // The child's child: nobody of the job is its parent, and it has no terminal.
  if (const pid_t agent = ::fork(); agent != 0) ::_exit(agent > 0 ? 0 : 1);
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::dup2(plan.null_fd, STDIN_FILENO);
  ::dup2(plan.path_fd, STDOUT_FILENO);
  ::dup2(plan.log_fd, STDERR_FILENO);
  ::syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */);
  ::execve(plan.argv[0], plan.argv.data(), plan.envp.data());
  ::_exit(127);
}

// The line that the agent prints once it listens; empty: it ended, or the time is over.
std::string ReadPath(int fd, SteadyTime deadline) {
  std::string text;
  while (text.size() < kPathBytesMax) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd readable{fd, POLLIN, 0};
    if (left.count() <= 0 || ::poll(&readable, 1, static_cast<int>(left.count())) == 0) return "";
    std::array<char, 256> bytes;
    const ssize_t got = ::read(fd, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return "";
    text.append(bytes.data(), static_cast<std::size_t>(got));
    if (text.back() == '\n') return text.substr(0, text.size() - 1);
  }
  return "";
}

}  // namespace

bool IsOfMpiJob(const std::string& entry) {
  constexpr std::string_view kPrefixes[] = {"OMPI_", "OPAL_", "ORTE_", "PMIX_", "PMI_", "PRTE_"};
  for (const std::string_view prefix : kPrefixes) {
    if (entry.starts_with(prefix)) return true;
  }
  return false;
}

absl::StatusOr<std::string> StartNodeAgent(const std::string& program,
                                           const NodeAgentOptions& options, int node,
                                           std::chrono::milliseconds timeout) {
  const std::string name = "node-" + std::to_string(node);
  const std::string log = options.log_folder + "/" + name + ".log";
  std::vector<std::string> arguments = {program,
                                        "--coordinator-file",
                                        options.coordinator_file,
                                        "--token-file",
                                        options.token_file,
                                        "--name",
                                        name,
                                        "--slots",
                                        std::to_string(options.slots_per_node),
                                        "--run-id",
                                        options.run_id,
                                        "--log-file",
                                        log,
                                        "--adopt-from",
                                        std::to_string(::getpid())};
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!IsOfMpiJob(*entry)) environment.emplace_back(*entry);
  }
  Plan plan{.argv = Pointers(arguments), .envp = Pointers(environment)};
  plan.null_fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  plan.log_fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (plan.log_fd < 0) return ErrnoStatus(errno, "log " + log);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  plan.path_fd = ends[1];
  const pid_t child = ::fork();
  if (child < 0) return ErrnoStatus(errno, "fork for " + program);
  if (child == 0) BecomeAgent(plan);
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  for (const int fd : {plan.null_fd, plan.log_fd, ends[1]}) ::close(fd);
  const std::string path = ReadPath(ends[0], std::chrono::steady_clock::now() + timeout);
  ::close(ends[0]);
  if (!path.empty()) return path;
  return absl::UnavailableError("the agent of " + name + " was not ready within " +
                                std::to_string(timeout.count()) +
                                " ms, or ended at its start; its log is " + log);
}

}  // namespace paceline
