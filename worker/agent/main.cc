// paceline-agent: one on each node.
#include <pthread.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <thread>

#include "common/logging.h"
#include "common/process.h"
#include "common/snapshot_root.h"
#include "worker/agent/agent.h"

namespace {

// Passes SIGTERM and SIGINT on to the agent. Made before any other thread, so that all of them
// inherit the blocked mask and only this one takes the signals.
class SignalThread {
 public:
  SignalThread() {
    ::sigemptyset(&signals_);
    ::sigaddset(&signals_, SIGTERM);
    ::sigaddset(&signals_, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  void Watch(paceline::Agent& agent) {
    thread_ = std::thread([this, &agent] {
      int signal = 0;
      while (::sigwait(&signals_, &signal) == 0 && !done_) {
        agent.Shutdown(signal == SIGTERM ? "SIGTERM" : "SIGINT");
      }
    });
  }
  ~SignalThread() {
    if (!thread_.joinable()) return;
    done_ = true;
    ::pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }

 private:
  sigset_t signals_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "paceline-agent: %s\n", std::string(status.message()).c_str());
  return static_cast<int>(paceline::ExitCodeFor(status));
}

}  // namespace

int main(int argc, char** argv) {
  paceline::AgentOptions options;
  options.worker = paceline::ProgramFolder() + "/paceline-worker";
  options.version = PACELINE_VERSION;
  options.snapshot_root = paceline::DefaultSnapshotRoot();
  paceline::LogOptions log{.program = "paceline-agent", .background = true};

  CLI::App app("Starts and watches the ranks of one node, and speaks to the coordinator for them.");
  app.add_option("--coordinator", options.coordinator, "The coordinator's HOST:PORT");
  app.add_option("--coordinator-file", options.coordinator_file,
                 "A run's coordinator.json, read again at every connection");
  app.add_option("--token-file", options.token_file, "The file that holds the coordinator's token");
  app.add_option("--name", options.name, "The node's name, stable over restarts")->required();
  app.add_option("--slots", options.slots, "Places for ranks")->capture_default_str();
  app.add_option("--run-id", options.run_id, "Serve this run alone");
  app.add_option("--state-dir", options.state_dir,
                 "Folder for the workers' socket (default: a new one in the temporary folder)");
  app.add_option("--snapshot-dir", options.snapshot_root,
                 "Folder in shared memory for snapshots of the ranks' state (\"\": take none)")
      ->capture_default_str();
  app.add_option("--address", options.address,
                 "This node's IP address, at which agents and ranks of other nodes reach its own "
                 "(snapshots and Gloo, at any port; not encrypted)")
      ->capture_default_str();
  app.add_option("--metrics-listen", options.metrics_listen, "HOST:PORT of /metrics")
      ->capture_default_str();
  app.add_option("--worker", options.worker, "The worker program")->capture_default_str();
  app.add_option("--adopt-from", options.adopt_from,
                 "Start no workers: adopt those of the MPI job that the process of this id is in, "
                 "and print the path of the socket that they shall connect to");
  app.add_option("--log-file", log.file, "Where to log (default: stderr)");
  app.add_option("--log-level", log.level, "trace, debug, info, warning, error, critical or off")
      ->capture_default_str();
  app.set_version_flag("--version", PACELINE_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(paceline::ExitCode::kBadInput);
  }

  SignalThread signals;
  if (const absl::Status status = paceline::SetUpLogging(log); !status.ok()) return Fail(status);
  const bool adopts = options.adopt_from != 0;
  auto agent = paceline::Agent::Create(std::move(options));
  if (!agent.ok()) return Fail(agent.status());
  signals.Watch(**agent);
  if (adopts) {
    std::printf("%s\n", (*agent)->socket_path().c_str());
    std::fclose(stdout);  // whoever reads it waits for the end
  }
  return static_cast<int>((*agent)->Run());
}
