// Child processes: started without a shell, watched to their end, and never left behind.
//
//   ASSIGN_OR_RETURN(auto child, Process::Start({.argv = {program, "--flag"}, .log_path = log}));
//   if (!child->WaitFor(5s)) child->Kill();
//
// Each Process owns one thread that opens the log, forks the child, waits for its end (pidfd) and
// copies its stderr. That the forking thread outlives the child is what makes parent_death_signal
// sound: the kernel sends it when the *thread* that forked ends, not the process.
//
//   starting --> forking --> running --> over
//      |            '------(not started)---^
//      '--> cancelled: nothing is forked any more
// Invariant: a Process that has been destroyed has no living child, and nothing else of the
// child's process group lives either.
// Threading: every method is safe from any thread. Only Start, WaitFor, Wait and the destructor
// wait; the destructor for a child that has been killed, never for a file that does not open.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

namespace paceline {

// How a process ended.
struct ProcessExit {
  int exit_code = -1;  // -1 when a signal ended it, or not known
  int signal = 0;      // 0 when it exited by itself

  bool clean() const { return exit_code == 0; }
  // False of an adopted process: only its parent is told.
  bool known() const { return exit_code >= 0 || signal != 0; }
};

// "exit code 3", "signal 9 (Killed)", "an exit code that only its parent knows".
std::string ToString(const ProcessExit& exit);

struct ProcessOptions {
  std::vector<std::string> argv;         // argv[0] is the program's path (no search in PATH)
  std::vector<std::string> environment;  // "NAME=value", on top of this process's own
  std::string working_folder;            // empty: this process's
  // stdout and stderr are appended to this file (created with mode 0644, its folder if need be).
  // Empty: both are inherited and stderr_tail() stays empty.
  std::string log_path;
  std::string log_header;  // a line written to the log before the child starts; empty: none
  // What the child gets when this process dies, however it dies; 0: nothing, it lives on.
  int parent_death_signal = SIGKILL;
  // The child leads a process group of its own, so that Ctrl-C at the terminal reaches this
  // process alone, and signals sent here reach the child's children too.
  bool own_group = true;
  std::size_t stderr_tail_lines = 50;
  // Called once, on the process's own thread: the child's id when its program runs, or why there
  // is no child (as Start). Must not destroy the Process.
  std::function<void(const absl::StatusOr<pid_t>&)> on_start;
  // Called once if the child was started, on the process's own thread, after the child has ended
  // and its stderr has been read. Must not destroy the Process.
  std::function<void(const ProcessExit&)> on_exit;
};

class Process {
 public:
  // kNotFound, kPermissionDenied: of the program or the log, which the text names. Else as
  // ErrnoStatus (common/files.h), kUnavailable when the system is out of processes.
  static absl::StatusOr<std::unique_ptr<Process>> Start(ProcessOptions options);
  // Start without the wait for a slow disk or a busy machine: how it went is told to on_start.
  // kInvalidArgument: no program is named. kResourceExhausted: the system is out of threads.
  static absl::StatusOr<std::unique_ptr<Process>> Launch(ProcessOptions options);
  // Watches a process that another program started, as if it were a child: its stderr_tail is the
  // end of the file that it logs to, read when it has ended. kNotFound: there is no such process.
  static absl::StatusOr<std::unique_ptr<Process>> Adopt(
      pid_t pid, std::string log_path, std::function<void(const ProcessExit&)> on_exit);
  // Kills what still lives, waits for its end.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // -1: not forked yet.
  pid_t pid() const;
  // True: the child was not forked yet and never will be, and no callback follows.
  bool Cancel();
  // Sends `signal` to the child (and its group), to one that is not forked yet as soon as it is.
  // Does nothing once the child has ended.
  void Signal(int signal);
  void Kill() { Signal(SIGKILL); }

  // What the child writes to stderr from now on goes to the file `log_path`, after the line
  // `header`. Opened with the next bytes, by the process's own thread; where that fails the old
  // log goes on. Without a log of its own: nothing happens.
  void SwitchLog(std::string log_path, std::string header);

  // The child's end; nullopt: it lives, or was never started.
  std::optional<ProcessExit> exit() const;
  // Waits for the end at most `timeout`; nullopt: it still lives.
  std::optional<ProcessExit> WaitFor(std::chrono::milliseconds timeout) const;
  ProcessExit Wait() const;

  // The last lines the child wrote to stderr, oldest first; long lines are cut.
  std::vector<std::string> stderr_tail() const;

 private:
  struct Impl;
  explicit Process(std::shared_ptr<Impl> impl);
  // Shared with the thread: a cancelled one may stay in a file that does not open.
  std::shared_ptr<Impl> impl_;
};

// The folder this program's executable lies in: where its sibling programs are found.
std::string ProgramFolder();

}  // namespace paceline
