#include "coordinator/coordinator.h"

#include <prometheus/metric_family.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
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
#include "common/token.h"
#include "coordinator/core/core.h"
#include "coordinator/metrics/cluster_view.h"
#include "coordinator/metrics/coordinator_metrics.h"
#include "coordinator/rpc/connections.h"
#include "coordinator/rpc/file_worker.h"
#include "coordinator/rpc/loop.h"
#include "coordinator/rpc/run_files.h"
#include "coordinator/rpc/server.h"
#include "coordinator/storage/journal.h"

namespace paceline {
namespace {

constexpr std::chrono::seconds kScrapeLimit{2};
constexpr int kTakeAttempts = 3;

// The journal, taken for a new epoch, and the core that its facts give.
struct Taken {
  std::unique_ptr<storage::Journal> journal;
  std::unique_ptr<core::Core> core;
  Epoch epoch;
};

absl::StatusOr<Taken> TakeOnce(const std::string& state_dir, std::int64_t history_bytes_max) {
  Taken taken;
  ASSIGN_OR_RETURN(taken.journal,
                   storage::OpenFileJournal(state_dir, /*read_only=*/false, history_bytes_max));
  // The core wants its epoch first, and only the end of the replay tells which is free.
  std::optional<v1::StateSnapshot> snapshot;
  std::vector<v1::Fact> facts;
  ASSIGN_OR_RETURN(const storage::Replay replay, taken.journal->Read(
                                                     [&](const v1::StateSnapshot& found) {
                                                       snapshot = found;
                                                       return absl::OkStatus();
                                                     },
                                                     [&](const v1::Fact& fact) {
                                                       facts.push_back(fact);
                                                       return absl::OkStatus();
                                                     }));
  taken.epoch = Epoch{replay.last_epoch.value() + 1};
  taken.core = std::make_unique<core::Core>(core::CoreOptions{.epoch = taken.epoch});
  if (snapshot) RETURN_IF_ERROR(taken.core->Restore(*snapshot));
  for (const v1::Fact& fact : facts) {
    RETURN_IF_ERROR(Annotate(taken.core->Evolve(fact),
                             absl::StrCat("journal in ", state_dir, ", fact ", fact.index())));
  }
  RETURN_IF_ERROR(taken.journal->OpenEpoch(taken.epoch));
  for (const std::string& note : replay.notes) spdlog::warn("journal: {}", note);
  spdlog::info("epoch {}: replayed {} facts{} from {}", taken.epoch.value(), facts.size(),
               snapshot ? absl::StrCat(" after the snapshot of fact ", snapshot->index()) : "",
               state_dir);
  return taken;
}

// kAborted means that another coordinator was still appending: read again.
absl::StatusOr<Taken> Take(const std::string& state_dir, std::int64_t history_bytes_max) {
  absl::StatusOr<Taken> taken = TakeOnce(state_dir, history_bytes_max);
  for (int attempt = 1; attempt < kTakeAttempts && absl::IsAborted(taken.status()); ++attempt) {
    taken = TakeOnce(state_dir, history_bytes_max);
  }
  return taken;
}

}  // namespace

struct Coordinator::Impl {
  Impl(Taken taken_state, Now now)
      : taken(std::move(taken_state)),
        metrics(taken.epoch.value(), static_cast<double>(now.wall_ms) / 1000),
        broken(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Impl() {
    if (broken >= 0) ::close(broken);
  }

  absl::StatusOr<ClusterView> Look();
  HttpResponse Metrics();
  HttpResponse Discovery();

  // In the order of construction: each uses those above it.
  Taken taken;
  CoordinatorMetrics metrics;
  const int broken;
  Connections connections;
  CoordinatorFiles coordinator_files;
  FileWorker files;
  std::unique_ptr<Loop> loop;
  std::unique_ptr<RpcServer> server;
  std::unique_ptr<HttpServer> http;
  bool stopped = false;
  absl::Status result;
};

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

int Coordinator::broken_event() const { return impl_->broken; }

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(const CoordinatorOptions& options) {
  // What the flags say is checked before anything is made.
  RETURN_IF_ERROR(ParseLoopbackAddress("--listen", options.listen).status());
  RETURN_IF_ERROR(ParseLoopbackAddress("--metrics-listen", options.metrics_listen).status());
  std::error_code error;
  const std::string state_dir = std::filesystem::absolute(options.state_dir, error).string();
  if (options.state_dir.empty() || error) {
    return absl::InvalidArgumentError("--state-dir: give a folder");
  }
  const Now now = ReadClock();
  ASSIGN_OR_RETURN(Taken taken, Take(state_dir, options.history_bytes_max));
  const std::string token_file = options.token_file.empty()
                                     ? state_dir + "/token"
                                     : std::filesystem::absolute(options.token_file).string();
  ASSIGN_OR_RETURN(const std::string token, ReadOrMakeToken(token_file));

  auto impl = std::make_unique<Impl>(std::move(taken), now);
  Impl* const parts = impl.get();
  if (impl->broken < 0) return ErrnoStatus(errno, "eventfd");
  // The addresses are known only once the servers listen, and they answer once the loop runs.
  CoordinatorInfo info{.epoch = impl->taken.epoch.value(),
                       .pid = ::getpid(),
                       .token_file = token_file,
                       .started_ms = now.wall_ms};
  impl->loop = std::make_unique<Loop>(
      Loop::Parts{
          .core = *impl->taken.core,
          .journal = *impl->taken.journal,
          .outbox = impl->connections,
          .files = impl->files,
          .coordinator_files = impl->coordinator_files,
          .metrics = impl->metrics,
          .on_broken = [fd = impl->broken](const absl::Status&) { ::eventfd_write(fd, 1); }},
      LoopOptions{});
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
  return impl_->result;
}

}  // namespace paceline
