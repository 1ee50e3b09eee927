#include "coordinator/coordinator.h"

#include <netdb.h>
#include <prometheus/metric_family.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <future>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/address.h"
#include "common/clock.h"
#include "common/files.h"
#include "common/http_server.h"
#include "common/metrics_text.h"
#include "common/run_state.h"
#include "common/timeouts.h"
#include "common/token.h"
#include "coordinator/core/core.h"
#include "coordinator/lease_keeper.h"
#include "coordinator/metrics/cluster_view.h"
#include "coordinator/metrics/coordinator_metrics.h"
#include "coordinator/rpc/connections.h"
#include "coordinator/rpc/file_worker.h"
#include "coordinator/rpc/loop.h"
#include "coordinator/rpc/run_files.h"
#include "coordinator/rpc/server.h"
#include "coordinator/storage/epoch_fence.h"
#include "coordinator/take_over.h"

namespace paceline {
namespace {

constexpr std::chrono::seconds kScrapeLimit{2};
constexpr std::int64_t kBudgetMinMs = 200;
constexpr std::int64_t kBudgetMaxMs = 3'600'000;

std::string HostName() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

// Before anything is made.
absl::Status CheckFlags(const CoordinatorOptions& options) {
  RETURN_IF_ERROR(ParseLoopbackAddress("--listen", options.listen).status());
  RETURN_IF_ERROR(ParseLoopbackAddress("--metrics-listen", options.metrics_listen).status());
  if (options.state_dir.empty()) return absl::InvalidArgumentError("--state-dir: give a folder");
  if (options.budget_ms >= kBudgetMinMs && options.budget_ms <= kBudgetMaxMs) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("--budget-ms = ", options.budget_ms, ": give ",
                                                 kBudgetMinMs, " to ", kBudgetMaxMs));
}

// What earlier coordinators have left half written can take its name no more.
absl::Status RemoveDrafts(const storage::EpochFence& fence, const std::string& state_dir,
                          const std::vector<v1::RunStatus>& runs) {
  RETURN_IF_ERROR(fence.RemoveDrafts(state_dir));
  for (const v1::RunStatus& run : runs) {
    const absl::Status status = fence.RemoveDrafts(run.run_dir());
    if (!status.ok()) spdlog::warn("run {}: {}", run.run_id(), status.ToString());
  }
  return absl::OkStatus();
}

// gRPC's server is made when the coordinator leads: that its port is in use should be known before.
absl::Status CheckListenIsFree(const std::string& listen) {
  ASSIGN_OR_RETURN(const Address address, ParseLoopbackAddress("--listen", listen));
  addrinfo* found = nullptr;
  const addrinfo hints{.ai_flags = AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
  if (::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found) !=
      0) {
    return absl::InvalidArgumentError(absl::StrCat("--listen = \"", listen, "\": no such host"));
  }
  const int probe = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  ::setsockopt(probe, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  const bool free = ::bind(probe, found->ai_addr, found->ai_addrlen) == 0;
  ::close(probe);
  ::freeaddrinfo(found);
  if (free) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("cannot listen on --listen = \"", listen,
                   "\": the address is in use, or not this machine's; a standby on the leader's "
                   "machine needs a port of its own"));
}

// TakeOver; a standby serves its metrics meanwhile.
absl::StatusOr<Taken> StandBy(const CoordinatorOptions& options, TakeOverOptions take,
                              double started_seconds) {
  if (!options.standby) return TakeOver(take);
  RETURN_IF_ERROR(CheckListenIsFree(options.listen));
  CoordinatorMetrics metrics(started_seconds);
  ASSIGN_OR_RETURN(
      const std::unique_ptr<HttpServer> http,
      HttpServer::Start(options.metrics_listen,
                        {{"/metrics", [&metrics] { return MetricsResponse(metrics.Collect()); }}}));
  spdlog::info("standing by, metrics on http://{}/metrics", http->address());
  take.on_wait = [&metrics](const storage::LeaseWatch::View& view) {
    metrics.Watch(view.epoch.value());
  };
  return TakeOver(take);
}

}  // namespace

struct Coordinator::Impl {
  Impl(Taken taken_state, const std::string& state_dir, double started_seconds)
      : taken(std::move(taken_state)),
        fence(state_dir, taken.epoch),
        metrics(started_seconds),
        ended(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        coordinator_files(fence) {}
  ~Impl() {
    if (ended >= 0) ::close(ended);
  }

  void MakeLoop(const std::string& state_dir, std::chrono::milliseconds heartbeat);
  absl::StatusOr<ClusterView> Look();
  HttpResponse Metrics();
  HttpResponse Discovery();

  // In the order of construction: each uses those above it.
  Taken taken;
  const storage::EpochFence fence;
  CoordinatorMetrics metrics;
  const int ended;
  Connections connections;
  CoordinatorFiles coordinator_files;
  FileWorker files;
  std::unique_ptr<Loop> loop;
  std::unique_ptr<RpcServer> server;
  std::unique_ptr<HttpServer> http;
  std::unique_ptr<LeaseKeeper> keeper;
  bool stopped = false;
  absl::Status result;
};

// The lease is kept before anything begins that a slow disk may hold up.
void Coordinator::Impl::MakeLoop(const std::string& state_dir,
                                 std::chrono::milliseconds heartbeat) {
  loop = std::make_unique<Loop>(
      Loop::Parts{.core = *taken.core,
                  .journal = *taken.journal,
                  .outbox = connections,
                  .files = files,
                  .coordinator_files = coordinator_files,
                  .fence = fence,
                  .metrics = metrics,
                  .on_broken = [fd = ended](const absl::Status&) { ::eventfd_write(fd, 1); }},
      LoopOptions{.fence_interval = heartbeat});
  keeper = std::make_unique<LeaseKeeper>(LeaseKeeper::Options{
      .state_dir = state_dir,
      .fence = fence,
      .lease = taken.lease,
      .interval = heartbeat,
      .on_replaced = [this](const absl::Status& status) { loop->Abandon(status); },
      .on_renewed = [this] { metrics.LeaseRenewed(ReadClock().wall_ms); },
      .tend =
          [this] {
            const absl::Status status = coordinator_files.Tend();
            if (!status.ok()) spdlog::warn("coordinator.json: {}", status.ToString());
          }});
}

absl::StatusOr<ClusterView> Coordinator::Impl::Look() {
  auto promise = std::make_shared<std::promise<absl::StatusOr<ClusterView>>>();
  auto answer = promise->get_future();
  RETURN_IF_ERROR(loop->Ask(ReadClock().steady + kScrapeLimit,
                            [promise](const absl::Status& status, const core::Core& core, Now now) {
                              if (!status.ok()) return promise->set_value(status);
                              promise->set_value(
                                  ClusterView{.runs = core.ListRuns(now), .nodes = core.Nodes()});
                            }));
  if (answer.wait_for(kScrapeLimit) != std::future_status::ready) {
    return absl::DeadlineExceededError("the coordinator is too busy to answer");
  }
  return answer.get();
}

HttpResponse Coordinator::Impl::Metrics() {
  std::vector<prometheus::MetricFamily> families = metrics.Collect();
  const absl::StatusOr<ClusterView> view = Look();
  if (!view.ok()) return {.status = 503, .body = absl::StrCat(view.status().message(), "\n")};
  std::vector<prometheus::MetricFamily> of_cluster = ClusterFamilies(*view);
  std::move(of_cluster.begin(), of_cluster.end(), std::back_inserter(families));
  return MetricsResponse(families);
}

// An error, not an empty list, while the loop is busy: Prometheus then keeps the list it has.
HttpResponse Coordinator::Impl::Discovery() {
  const absl::StatusOr<ClusterView> view = Look();
  if (!view.ok()) return {.status = 503, .body = absl::StrCat(view.status().message(), "\n")};
  return {.content_type = "application/json", .body = DiscoveryJson(*view, http->address())};
}

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() { (void)Stop(); }

int Coordinator::ended_event() const { return impl_->ended; }

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(const CoordinatorOptions& options) {
  RETURN_IF_ERROR(CheckFlags(options));
  std::error_code error;
  const std::string state_dir = std::filesystem::absolute(options.state_dir, error).string();
  if (error) return absl::InvalidArgumentError("--state-dir: give a folder");
  const Timeouts timeouts = TimeoutsFor(options.budget_ms);
  const double started_seconds = static_cast<double>(ReadClock().wall_ms) / 1000;
  ASSIGN_OR_RETURN(Taken taken, StandBy(options,
                                        {.state_dir = state_dir,
                                         .history_bytes_max = options.history_bytes_max,
                                         .look_interval = timeouts.heartbeat,
                                         .lease = timeouts.lease,
                                         .standby = options.standby,
                                         .stop_event = options.stop_event},
                                        started_seconds));
  const Now now = ReadClock();
  const std::string token_file = options.token_file.empty()
                                     ? state_dir + "/token"
                                     : std::filesystem::absolute(options.token_file).string();
  ASSIGN_OR_RETURN(const std::string token, ReadOrMakeToken(token_file));

  auto impl = std::make_unique<Impl>(std::move(taken), state_dir, started_seconds);
  Impl* const parts = impl.get();
  impl->metrics.Lead(impl->taken.epoch.value());
  impl->metrics.LeaseRenewed(now.wall_ms);
  if (impl->ended < 0) return ErrnoStatus(errno, "eventfd");
  // The addresses are known only once the servers listen, and they answer once the loop runs.
  CoordinatorInfo info{.epoch = impl->taken.epoch.value(),
                       .host = HostName(),
                       .pid = ::getpid(),
                       .token_file = token_file,
                       .started_ms = now.wall_ms};
  impl->MakeLoop(state_dir, timeouts.heartbeat);
  ASSIGN_OR_RETURN(impl->server,
                   RpcServer::Start(options.listen, token, *impl->loop, impl->connections));
  ASSIGN_OR_RETURN(
      impl->http,
      HttpServer::Start(options.metrics_listen,
                        {{"/metrics", [parts] { return parts->Metrics(); }},
                         {"/service-discovery", [parts] { return parts->Discovery(); }}}));
  info.address = impl->server->address();
  info.metrics_address = impl->http->address();

  impl->coordinator_files.SetInfo(info);
  const std::vector<v1::RunStatus> runs = impl->taken.core->ListRuns(now);
  RETURN_IF_ERROR(RemoveDrafts(impl->fence, state_dir, runs));
  impl->loop->Start();  // From here on the core is the loop's.
  for (const v1::RunStatus& run : runs) {
    if (HasEnded(run.state())) continue;
    const absl::Status status = impl->coordinator_files.WriteTo(run.run_dir());
    if (!status.ok()) spdlog::warn("run {}: {}", run.run_id(), status.ToString());
  }
  // Last: who finds this file is answered.
  RETURN_IF_ERROR(impl->coordinator_files.WriteTo(state_dir));
  spdlog::info("listening on {}, metrics on http://{}/metrics", info.address, info.metrics_address);
  return std::unique_ptr<Coordinator>(new Coordinator(std::move(impl)));
}

absl::Status Coordinator::Stop() {
  if (impl_->stopped) return impl_->result;
  impl_->stopped = true;
  impl_->result = impl_->loop->Stop();
  impl_->files.Drain();
  impl_->server->Stop(absl::UnavailableError("the coordinator is ending"));
  impl_->http.reset();
  impl_->coordinator_files.RemoveAll();
  impl_->keeper->Stop(/*release=*/impl_->result.ok());
  return impl_->result;
}

}  // namespace paceline
