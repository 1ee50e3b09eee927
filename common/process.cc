#include "common/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <future>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/files.h"

namespace paceline {
namespace {

constexpr std::size_t kLineBytesMax = 4096;
constexpr off_t kLogTailBytesMax = 64 * 1024;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    Close();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
  ~FileDescriptor() { Close(); }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

void WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    // A full disk costs lines of the log, never the child: the tail still has them.
    if (written <= 0) return;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

// The last lines of a stream of bytes.
class LineTail {
 public:
  explicit LineTail(std::size_t lines_max) : lines_max_(lines_max) {}

  void Add(std::string_view bytes) {
    for (const char c : bytes) {
      if (c == '\n') {
        Finish();
      } else if (partial_.size() < kLineBytesMax) {
        partial_.push_back(c);
      }
    }
  }
  std::vector<std::string> lines() const {
    std::vector<std::string> lines(lines_.begin(), lines_.end());
    if (!partial_.empty()) lines.push_back(partial_);
    if (lines.size() > lines_max_) lines.erase(lines.begin());
    return lines;
  }

 private:
  void Finish() {
    lines_.push_back(std::exchange(partial_, {}));
    if (lines_.size() > lines_max_) lines_.pop_front();
  }

  std::size_t lines_max_;
  std::deque<std::string> lines_;
  std::string partial_;
};

// What the child needs, prepared before the fork: after it, in a program with threads, only
// async-signal-safe calls are allowed, so no allocation.
struct ChildPlan {
  std::vector<char*> argv;
  std::vector<char*> envp;
  const char* working_folder = nullptr;
  int null_fd = -1;
  int stdout_fd = -1;  // -1: inherited
  int stderr_fd = -1;
  int error_fd = -1;  // the errno of a failed step goes here; closed by a successful exec
  int parent_death_signal = 0;
  bool own_group = false;
  pid_t parent = 0;
};

[[noreturn]] void FailInChild(const ChildPlan& plan) {
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(plan.error_fd, &error, sizeof(error));
  ::_exit(127);
}

[[noreturn]] void RunChild(const ChildPlan& plan) {
  if (plan.own_group) ::setpgid(0, 0);
  if (plan.parent_death_signal != 0) {
    if (::prctl(PR_SET_PDEATHSIG, plan.parent_death_signal) != 0) FailInChild(plan);
    // The parent may have died between fork and prctl: then no signal will ever come.
    if (::getppid() != plan.parent) ::_exit(127);
  }
  // The parent may ignore or block signals; the child starts with the defaults.
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  for (const int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGQUIT}) {
    ::sigaction(signal, &action, nullptr);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::dup2(plan.null_fd, STDIN_FILENO) < 0) FailInChild(plan);
  if (plan.stdout_fd >= 0 && ::dup2(plan.stdout_fd, STDOUT_FILENO) < 0) FailInChild(plan);
  if (plan.stderr_fd >= 0 && ::dup2(plan.stderr_fd, STDERR_FILENO) < 0) FailInChild(plan);
  if (plan.working_folder != nullptr && ::chdir(plan.working_folder) != 0) FailInChild(plan);
#ifdef SYS_close_range
  // Descriptors that some library opened without close-on-exec stay out of the child. An old
  // kernel without this call merely leaks them.
  ::syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */);
#endif
  ::execve(plan.argv[0], plan.argv.data(), plan.envp.data());
  FailInChild(plan);
}

// This process's environment with `additions` in place of what they redefine.
std::vector<std::string> MergedEnvironment(const std::vector<std::string>& additions) {
  std::vector<std::string> merged = additions;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('=') + 1);
    const bool replaced =
        std::any_of(additions.begin(), additions.end(),
                    [&](const std::string& addition) { return addition.starts_with(name); });
    if (!replaced) merged.emplace_back(text);
  }
  return merged;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

absl::StatusOr<std::array<FileDescriptor, 2>> OpenPipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  return std::array{FileDescriptor(ends[0]), FileDescriptor(ends[1])};
}

}  // namespace

std::string ToString(const ProcessExit& exit) {
  if (!exit.known()) return "an exit code that only its parent knows";
  if (exit.signal == 0) return "exit code " + std::to_string(exit.exit_code);
  const char* name = ::sigdescr_np(exit.signal);
  return "signal " + std::to_string(exit.signal) +
         (name == nullptr ? "" : " (" + std::string(name) + ")");
}

struct Process::Impl {
  enum class Phase { kStarting, kForking, kRunning, kOver, kCancelled };

  explicit Impl(ProcessOptions given)
      : options(std::move(given)), tail(options.stderr_tail_lines) {}

  void Run();
  absl::Status Begin();
  absl::Status OpenLog();
  absl::Status Fork(ChildPlan& plan);
  absl::Status AwaitExec(int error_fd);
  void SendLocked(int signal) const {
    if (adopted) {
      ::syscall(SYS_pidfd_send_signal, pid_fd.get(), signal, nullptr, 0);
    } else {
      ::kill(options.own_group ? -pid : pid, signal);
    }
  }
  void Watch();
  void CopyStderr();
  void TakeNextLog();
  void ReadLogTail();
  void Reap();

  ProcessOptions options;
  bool adopted = false;
  FileDescriptor pid_fd;
  FileDescriptor log;
  FileDescriptor stderr_pipe;  // the reading end
  std::thread thread;

  mutable std::mutex mutex;
  mutable std::condition_variable ended;
  Phase phase = Phase::kStarting;
  pid_t pid = -1;
  int early_signal = 0;  // asked for before there was a child
  std::optional<ProcessExit> exit;
  LineTail tail;
  std::optional<std::pair<std::string, std::string>> next_log;  // path, header
};

void Process::Impl::Run() {
  const absl::Status status = Begin();
  {
    const std::lock_guard lock(mutex);
    if (phase == Phase::kCancelled) return;
    phase = status.ok() ? Phase::kRunning : Phase::kOver;
  }
  if (options.on_start) {
    options.on_start(status.ok() ? absl::StatusOr<pid_t>(pid) : absl::StatusOr<pid_t>(status));
  }
  if (status.ok()) Watch();
}

absl::Status Process::Impl::OpenLog() {
  const std::filesystem::path folder = std::filesystem::path(options.log_path).parent_path();
  std::error_code ignored;  // the open that follows names what is wrong
  if (!folder.empty()) std::filesystem::create_directories(folder, ignored);
  log = FileDescriptor(
      ::open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!log.valid()) return ErrnoStatus(errno, "log " + options.log_path);
  if (!options.log_header.empty()) WriteAll(log.get(), options.log_header + "\n");
  return absl::OkStatus();
}

absl::Status Process::Impl::Begin() {
  std::vector<std::string> environment = MergedEnvironment(options.environment);
  ChildPlan plan;
  plan.argv = Pointers(options.argv);
  plan.envp = Pointers(environment);
  if (!options.working_folder.empty()) plan.working_folder = options.working_folder.c_str();
  plan.parent_death_signal = options.parent_death_signal;
  plan.own_group = options.own_group;
  plan.parent = ::getpid();

  const FileDescriptor null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) return ErrnoStatus(errno, "/dev/null");
  plan.null_fd = null.get();
  FileDescriptor stderr_write;
  if (!options.log_path.empty()) {
    RETURN_IF_ERROR(OpenLog());
    ASSIGN_OR_RETURN(auto ends, OpenPipe());
    stderr_pipe = std::move(ends[0]);
    stderr_write = std::move(ends[1]);
    ::fcntl(stderr_pipe.get(), F_SETFL, O_NONBLOCK);
    plan.stdout_fd = log.get();
    plan.stderr_fd = stderr_write.get();
  }
  ASSIGN_OR_RETURN(auto error_pipe, OpenPipe());
  plan.error_fd = error_pipe[1].get();
  RETURN_IF_ERROR(Fork(plan));
  stderr_write.Close();
  error_pipe[1].Close();
  return AwaitExec(error_pipe[0].get());
}

absl::Status Process::Impl::Fork(ChildPlan& plan) {
  {
    const std::lock_guard lock(mutex);
    if (phase == Phase::kCancelled) return absl::CancelledError("");
    phase = Phase::kForking;
  }
  const pid_t child = ::fork();
  if (child < 0) return ErrnoStatus(errno, "fork for " + options.argv[0]);
  if (child == 0) RunChild(plan);
  // The child does this too: whoever comes first, a signal to the group finds it.
  if (options.own_group) ::setpgid(child, child);
  const std::lock_guard lock(mutex);
  pid = child;
  if (early_signal != 0) SendLocked(early_signal);
  return absl::OkStatus();
}

// Waits until the child's program runs. A child killed before that counts as one that ran.
absl::Status Process::Impl::AwaitExec(int error_fd) {
  int child_error = 0;
  ssize_t got;
  do {
    got = ::read(error_fd, &child_error, sizeof(child_error));
  } while (got < 0 && errno == EINTR);
  absl::Status status;
  if (got == sizeof(child_error)) {
    status = ErrnoStatus(child_error, options.argv[0]);
  } else {
    pid_fd = FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!pid_fd.valid()) status = ErrnoStatus(errno, "pidfd_open (Linux 5.3 or newer is needed)");
  }
  if (status.ok()) return status;
  const std::lock_guard lock(mutex);
  phase = Phase::kOver;  // once it is reaped its id may be another process's
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  return status;
}

void Process::Impl::CopyStderr() {
  std::array<char, 16384> buffer;
  while (stderr_pipe.valid()) {
    const ssize_t got = ::read(stderr_pipe.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      stderr_pipe.Close();
      return;
    }
    const std::string_view bytes(buffer.data(), static_cast<std::size_t>(got));
    {
      const std::lock_guard lock(mutex);
      tail.Add(bytes);
    }
    TakeNextLog();
    WriteAll(log.get(), bytes);
  }
}

void Process::Impl::TakeNextLog() {
  std::optional<std::pair<std::string, std::string>> next;
  {
    const std::lock_guard lock(mutex);
    next.swap(next_log);
  }
  if (!next.has_value()) return;
  FileDescriptor opened(
      ::open(next->first.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!opened.valid()) {
    WriteAll(log.get(), ErrnoStatus(errno, "log " + next->first).ToString() + "\n");
    return;
  }
  WriteAll(opened.get(), next->second + "\n");
  log = std::move(opened);
}

void Process::Impl::Watch() {
  while (true) {
    std::array<pollfd, 2> waits = {pollfd{pid_fd.get(), POLLIN, 0},
                                   pollfd{stderr_pipe.get(), POLLIN, 0}};
    // A negative descriptor (stderr closed, or inherited) is ignored by poll.
    if (::poll(waits.data(), waits.size(), -1) < 0) {
      PACELINE_CHECK(errno == EINTR);
      continue;
    }
    CopyStderr();
    if (waits[0].revents != 0) break;
  }
  Reap();
}

void Process::Impl::ReadLogTail() {
  const FileDescriptor file(::open(options.log_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return;
  const off_t size = ::lseek(file.get(), 0, SEEK_END);
  std::string bytes(static_cast<std::size_t>(std::clamp<off_t>(size, 0, kLogTailBytesMax)), '\0');
  const ssize_t got =
      ::pread(file.get(), bytes.data(), bytes.size(), size - static_cast<off_t>(bytes.size()));
  if (got <= 0) return;
  const std::lock_guard lock(mutex);
  tail.Add(std::string_view(bytes).substr(0, static_cast<std::size_t>(got)));
}

void Process::Impl::Reap() {
  ProcessExit result;
  if (adopted) ReadLogTail();
  // Until it is reaped the child's id, which is its group's, cannot be anyone else's.
  if (options.own_group) ::kill(-pid, SIGKILL);
  CopyStderr();
  {
    const std::lock_guard lock(mutex);
    siginfo_t info = {};
    while (!adopted && ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED) != 0 &&
           errno == EINTR) {
    }
    if (info.si_code == CLD_EXITED) {
      result.exit_code = info.si_status;
    } else if (!adopted) {
      result.signal = info.si_status;
    }
    exit = result;
    phase = Phase::kOver;
  }
  stderr_pipe.Close();
  log.Close();
  ended.notify_all();
  if (options.on_exit) options.on_exit(result);
}

Process::Process(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<Process>> Process::Launch(ProcessOptions options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("argv is empty: name a program");
  auto impl = std::make_shared<Impl>(std::move(options));
  try {
    impl->thread = std::thread([impl] { impl->Run(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(std::string("no more threads: ") + error.what());
  }
  return std::unique_ptr<Process>(new Process(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Process>> Process::Start(ProcessOptions options) {
  const auto started = std::make_shared<std::promise<absl::Status>>();
  options.on_start = [started,
                      told = std::move(options.on_start)](const absl::StatusOr<pid_t>& result) {
    if (told) told(result);
    started->set_value(result.status());
  };
  ASSIGN_OR_RETURN(std::unique_ptr<Process> process, Launch(std::move(options)));
  RETURN_IF_ERROR(started->get_future().get());
  return process;
}

absl::StatusOr<std::unique_ptr<Process>> Process::Adopt(
    pid_t pid, std::string log_path, std::function<void(const ProcessExit&)> on_exit) {
  auto impl = std::make_shared<Impl>(ProcessOptions{
      .log_path = std::move(log_path), .own_group = false, .on_exit = std::move(on_exit)});
  impl->adopted = true;
  impl->pid = pid;
  impl->phase = Impl::Phase::kRunning;
  impl->pid_fd = FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!impl->pid_fd.valid()) {
    return errno == ESRCH ? absl::NotFoundError("process " + std::to_string(pid) + " has ended")
                          : ErrnoStatus(errno, "pidfd_open");
  }
  try {
    impl->thread = std::thread([impl] { impl->Watch(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(std::string("no more threads: ") + error.what());
  }
  return std::unique_ptr<Process>(new Process(std::move(impl)));
}

Process::~Process() {
  if (Cancel()) {
    impl_->thread.detach();
    return;
  }
  Kill();
  impl_->thread.join();
}

pid_t Process::pid() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->pid;
}

bool Process::Cancel() {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->phase == Impl::Phase::kStarting) impl_->phase = Impl::Phase::kCancelled;
  return impl_->phase == Impl::Phase::kCancelled;
}

void Process::Signal(int signal) {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->phase == Impl::Phase::kOver) return;
  if (impl_->pid >= 0) return impl_->SendLocked(signal);
  if (impl_->early_signal != SIGKILL) impl_->early_signal = signal;
}

void Process::SwitchLog(std::string log_path, std::string header) {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->options.log_path.empty() || impl_->adopted) return;
  impl_->next_log.emplace(std::move(log_path), std::move(header));
}

std::optional<ProcessExit> Process::exit() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->exit;
}

std::optional<ProcessExit> Process::WaitFor(std::chrono::milliseconds timeout) const {
  std::unique_lock lock(impl_->mutex);
  impl_->ended.wait_for(lock, timeout, [&] { return impl_->exit.has_value(); });
  return impl_->exit;
}

ProcessExit Process::Wait() const {
  std::unique_lock lock(impl_->mutex);
  impl_->ended.wait(lock, [&] { return impl_->exit.has_value(); });
  return *impl_->exit;
}

std::vector<std::string> Process::stderr_tail() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->tail.lines();
}

std::string ProgramFolder() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
}

}  // namespace paceline
