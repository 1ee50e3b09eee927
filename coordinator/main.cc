// paceline-coordinator: decides which nodes train which run, and keeps the books.
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/signalfd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <string>

#include "common/exit_code.h"
#include "common/logging.h"
#include "coordinator/coordinator.h"

namespace {

using paceline::ExitCode;

constexpr char kExamples[] = R"(Examples:
  paceline-coordinator --state-dir /var/lib/paceline
      serves on two free ports; STATE_DIR/coordinator.json tells which
  paceline-coordinator --state-dir state --listen 127.0.0.1:7070 --metrics-listen 127.0.0.1:7071
      with ports of one's own, for Prometheus: http://127.0.0.1:7071/service-discovery
  paceline-coordinator --state-dir /shared/paceline --standby
      waits while another coordinator leads, and takes its place when it is gone or silent

Exit codes: 0 ended as asked, 2 a flag, an address in use or a state folder that another
coordinator has, 70 the journal failed or is damaged, 75 another coordinator has taken over, or
try again.)";

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "paceline-coordinator: %s\n", std::string(status.message()).c_str());
  return static_cast<int>(paceline::ExitCodeFor(status));
}

// SIGTERM and SIGINT as a descriptor; blocked before other threads start, so that none takes them.
int BlockSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return ::signalfd(-1, &signals, SFD_CLOEXEC);
}

// Until a signal comes, the journal fails, or another coordinator takes over.
void WaitForEnd(int signals, int ended) {
  pollfd waited[] = {{signals, POLLIN, 0}, {ended, POLLIN, 0}};
  while (::poll(waited, 2, -1) < 0 && errno == EINTR) {
  }
}

// Says how it ended.
ExitCode End(const absl::Status& status) {
  const std::string message(status.message());
  if (absl::IsFailedPrecondition(status)) {
    spdlog::warn("this coordinator leads no more and ends: {}", message);
    std::fprintf(stderr, "paceline-coordinator: this coordinator leads no more and ends: %s\n",
                 message.c_str());
    return ExitCode::kRetry;
  }
  if (!status.ok()) {
    // Whatever its code says elsewhere: a coordinator that loses its journal is broken.
    std::fprintf(stderr, "paceline-coordinator: the journal has failed: %s\n", message.c_str());
    return ExitCode::kBroken;
  }
  spdlog::info("ended");
  return ExitCode::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  paceline::CoordinatorOptions options;
  std::int64_t history_mib = options.history_bytes_max >> 20;
  paceline::LogOptions log{.program = "paceline-coordinator", .background = true};

  CLI::App app("Decides which nodes train which run, commits checkpoints, and keeps the books.");
  app.footer(kExamples);
  app.add_option("--state-dir", options.state_dir, "Folder of the journal; made if missing")
      ->required();
  app.add_option("--listen", options.listen, "HOST:PORT of the gRPC server, loopback; port 0: any")
      ->capture_default_str();
  app.add_option("--metrics-listen", options.metrics_listen,
                 "HOST:PORT of /metrics and /service-discovery, loopback; port 0: any")
      ->capture_default_str();
  app.add_option("--token-file", options.token_file,
                 "File with the token that every call carries, mode 0600; made if missing "
                 "(default: STATE_DIR/token)");
  app.add_flag(
      "--standby", options.standby,
      "Wait while another coordinator leads the state folder, and take over when it is gone "
      "or has renewed its lease for 4/5 of its --budget-ms no more");
  app.add_option("--budget-ms", options.budget_ms,
                 "How long this coordinator's own silence may last before a standby takes over")
      ->capture_default_str();
  app.add_option("--history-mib", history_mib,
                 "What STATE_DIR/history may hold of the journal, for `paceline events` and "
                 "`audit`; the oldest goes first; 0: none")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--log-file", log.file, "Where to log (default: stderr)");
  app.add_option("--log-level", log.level, "trace, debug, info, warning, error, critical or off")
      ->capture_default_str();
  app.set_version_flag("--version", PACELINE_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::kBadInput);
  }

  options.history_bytes_max = history_mib << 20;
  const int signals = BlockSignals();
  options.stop_event = signals;
  if (const absl::Status status = paceline::SetUpLogging(log); !status.ok()) return Fail(status);
  auto coordinator = paceline::Coordinator::Start(options);
  if (absl::IsCancelled(coordinator.status())) {
    spdlog::info("ended: {}", std::string(coordinator.status().message()));
    return static_cast<int>(ExitCode::kDone);
  }
  if (!coordinator.ok()) {
    spdlog::critical("{}", coordinator.status().ToString());
    return Fail(coordinator.status());
  }
  WaitForEnd(signals, (*coordinator)->ended_event());
  spdlog::info("ending");
  return static_cast<int>(End((*coordinator)->Stop()));
}
