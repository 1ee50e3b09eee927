// The agent's shell: it carries messages, processes and timers to AgentCore and carries out what
// AgentCore decides.
//
//   sockets, streams, processes --events--> mailbox --> loop: AgentCore::Handle --> actions
//
// An agent starts its workers itself, or adopts those that an MPI job has started: a worker that
// says Hello before its slot is planned waits for the plan, a plan waits for its worker. Such an
// agent belongs to one MPI job, serves one generation, and ends when the job has.
//
// Invariant: actions are carried out one after the other, in the order they were decided, on the
// loop's thread; when Run returns no worker of this agent lives.
// Threading: Run on one thread; Shutdown from any.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "common/exit_code.h"
#include "common/status.h"

namespace paceline {

struct AgentOptions {
  std::string coordinator;       // HOST:PORT, or
  std::string coordinator_file;  // the path of a coordinator.json, read at every connection
  std::string token_file;
  std::string name;
  int slots = 1;
  std::string run_id;     // serves this run alone; empty: any
  std::string state_dir;  // the socket's folder is made in it; empty: in the system's temporary one
  std::string metrics_listen = "127.0.0.1:0";
  // Snapshots are kept in a folder of it for each run and node, in memory that outlives this
  // process; empty: none are taken.
  std::string snapshot_root;
  // An IP address of this node: at ports of it other agents read its snapshots (where there is a
  // token_file), and other nodes' ranks exchange with its own over Gloo.
  std::string address = "127.0.0.1";
  std::string worker;    // the worker program
  pid_t adopt_from = 0;  // adopt the workers of the MPI job that this process, of this node, is in
  std::string version;   // of this release
};

class Agent {
 public:
  // kInvalidArgument: names the option. kAlreadyExists: the metrics address is in use.
  static absl::StatusOr<std::unique_ptr<Agent>> Create(AgentOptions options);
  ~Agent();

  // Where workers find this agent.
  const std::string& socket_path() const;
  // Serves until released, refused, or shut down.
  ExitCode Run();
  // Ends the ranks and then the agent; a second call ends them at once.
  void Shutdown(const std::string& reason);

 private:
  struct Impl;
  explicit Agent(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
