#include "worker/agent/snapshot_server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <cctype>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>

#include "common/address.h"
#include "common/token.h"
#include "paceline/v1/snapshots.grpc.pb.h"
#include "worker/agent/snapshot_folder.h"
#include "worker/checkpoint/snapshot_file.h"

namespace paceline {
namespace {

using Writer = grpc::ServerWriter<v1::SnapshotChunk>;

constexpr std::size_t kChunkBytes = 1 << 20;
constexpr int kPingIntervalMinMs = 1000;
constexpr std::size_t kRunIdBytesMax = 128;
constexpr std::chrono::milliseconds kWaitMax{10'000};
// How soon a reader that waits is let go when its caller has gone.
constexpr std::chrono::milliseconds kLookAtCaller{200};

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

// It becomes a folder's name.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name.size() <= kRunIdBytesMax && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

// The asked for among the files of one folder; nullopt: there is none.
std::optional<SnapshotReader> Look(const std::string& folder,
                                   const v1::ReadSnapshotRequest& asked) {
  std::optional<SnapshotReader> best;
  for (const int which : {0, 1}) {
    absl::StatusOr<SnapshotReader> reader =
        SnapshotReader::Open(SnapshotPath(folder, asked.rank(), which));
    if (!reader.ok()) continue;
    const SnapshotHead& head = reader->head();
    if (head.run_id != asked.run_id() || head.rank != asked.rank()) continue;
    const bool in_lineage = head.generation == asked.generation() || head.step <= asked.base_step();
    const bool wanted =
        asked.at_step() > 0 ? head.step == asked.at_step() : head.step > asked.after_step();
    if (!in_lineage || !wanted) continue;
    const bool better =
        !best.has_value() || head.step > best->head().step ||
        (head.step == best->head().step && head.generation > best->head().generation);
    if (better) best = *std::move(reader);
  }
  return best;
}

}  // namespace

struct SnapshotServer::Impl : v1::Snapshots::Service {
  grpc::Status ReadSnapshot(grpc::ServerContext* context, const v1::ReadSnapshotRequest* request,
                            Writer* writer) override;
  grpc::Status Check(const grpc::ServerContext& context,
                     const v1::ReadSnapshotRequest& request) const;
  std::optional<SnapshotReader> Find(const v1::ReadSnapshotRequest& request) const;
  std::optional<SnapshotReader> Await(const grpc::ServerContext& context,
                                      const v1::ReadSnapshotRequest& request);

  SnapshotServerOptions options;
  std::string address;
  std::unique_ptr<grpc::Server> server;
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t taken = 0;
  int readers = 0;
  bool stopping = false;
};

grpc::Status SnapshotServer::Impl::Check(const grpc::ServerContext& context,
                                         const v1::ReadSnapshotRequest& request) const {
  const absl::StatusOr<std::string> token = ReadToken(options.token_file);
  if (!token.ok()) return ToGrpc(token.status());
  const auto& metadata = context.client_metadata();
  const auto given = metadata.find("authorization");
  if (given == metadata.end() ||
      !EqualSecrets({given->second.data(), given->second.size()}, BearerOf(*token))) {
    return {grpc::StatusCode::UNAUTHENTICATED,
            "the call does not carry the coordinator's token: send the metadata \"authorization: "
            "Bearer TOKEN\""};
  }
  if (!IsPlainName(request.run_id())) {
    return {grpc::StatusCode::INVALID_ARGUMENT,
            "ReadSnapshot.run_id is no run's name: use letters, digits, '-', '_' and '.'"};
  }
  if (request.rank() < 0) {
    return {grpc::StatusCode::INVALID_ARGUMENT,
            "ReadSnapshot.rank = " + std::to_string(request.rank()) + ": ranks begin at 0"};
  }
  return grpc::Status::OK;
}

std::optional<SnapshotReader> SnapshotServer::Impl::Find(
    const v1::ReadSnapshotRequest& request) const {
  std::optional<SnapshotReader> found =
      Look(SnapshotFolder(options.root, request.run_id(), options.node), request);
  if (request.at_step() == 0) return found;
  std::optional<SnapshotReader> copy =
      Look(SnapshotCopiesFolder(options.root, request.run_id(), options.node), request);
  // Both may be of that step, and the older one of a lineage that was left.
  const bool newer = copy.has_value() &&
                     (!found.has_value() || copy->head().generation > found->head().generation);
  return newer ? std::move(copy) : std::move(found);
}

std::optional<SnapshotReader> SnapshotServer::Impl::Await(const grpc::ServerContext& context,
                                                          const v1::ReadSnapshotRequest& request) {
  const auto wait = std::clamp(std::chrono::milliseconds(request.wait_ms()),
                               std::chrono::milliseconds(0), kWaitMax);
  const auto deadline = std::chrono::steady_clock::now() + wait;
  while (true) {
    std::uint64_t seen = 0;
    {
      const std::lock_guard lock(mutex);
      if (stopping) return std::nullopt;
      seen = taken;
    }
    std::optional<SnapshotReader> found = Find(request);
    const auto now = std::chrono::steady_clock::now();
    if (found.has_value() || now >= deadline || context.IsCancelled()) return found;
    std::unique_lock lock(mutex);
    changed.wait_until(lock, std::min(deadline, now + kLookAtCaller),
                       [&] { return stopping || taken != seen; });
  }
}

grpc::Status SnapshotServer::Impl::ReadSnapshot(grpc::ServerContext* context,
                                                const v1::ReadSnapshotRequest* request,
                                                Writer* writer) {
  if (grpc::Status refused = Check(*context, *request); !refused.ok()) return refused;
  struct Place {
    explicit Place(Impl& given) : impl(given) {
      const std::lock_guard lock(impl.mutex);
      taken = impl.readers < impl.options.readers_max;
      if (taken) ++impl.readers;
    }
    ~Place() {
      const std::lock_guard lock(impl.mutex);
      if (taken) --impl.readers;
    }
    Impl& impl;
    bool taken = false;
  } place(*this);
  if (!place.taken) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, std::to_string(options.readers_max) +
                                                      " read snapshots of " + options.node +
                                                      " already; ask again later"};
  }
  const std::optional<SnapshotReader> reader = Await(*context, *request);
  if (!reader.has_value()) {
    return {grpc::StatusCode::NOT_FOUND, options.node + " holds no such snapshot of rank " +
                                             std::to_string(request->rank()) + " of run " +
                                             request->run_id()};
  }
  v1::SnapshotChunk chunk;
  chunk.mutable_head()->set_generation(reader->head().generation);
  chunk.mutable_head()->set_step(reader->head().step);
  chunk.mutable_head()->set_bytes(static_cast<std::int64_t>(reader->bytes()));
  chunk.mutable_head()->set_digest(reader->digest());
  if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
  chunk.clear_head();
  for (std::size_t at = 0; at < reader->bytes(); at += chunk.data().size()) {
    chunk.mutable_data()->resize(std::min(kChunkBytes, reader->bytes() - at));
    if (const absl::Status read = reader->Read(at, *chunk.mutable_data()); !read.ok()) {
      return ToGrpc(read);
    }
    if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
  }
  return ToGrpc(reader->CheckUnchanged());
}

SnapshotServer::SnapshotServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<SnapshotServer>> SnapshotServer::Start(
    SnapshotServerOptions options) {
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  Address address{impl->options.ip, 0};
  grpc::ResourceQuota quota("snapshots");
  quota.SetMaxThreads(impl->options.readers_max + 8);
  grpc::ServerBuilder builder;
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingIntervalMinMs);
  // Two agents of one machine shall not share a port.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), &address.port);
  builder.RegisterService(impl.get());
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || address.port == 0) {
    return absl::UnavailableError("--address " + address.host +
                                  ": cannot listen there; give an address of this machine");
  }
  impl->address = address.ToString();
  return std::unique_ptr<SnapshotServer>(new SnapshotServer(std::move(impl)));
}

SnapshotServer::~SnapshotServer() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->changed.notify_all();
  }
  impl_->server->Shutdown(std::chrono::system_clock::now());
  impl_->server->Wait();
}

const std::string& SnapshotServer::address() const { return impl_->address; }

void SnapshotServer::OnTaken() {
  const std::lock_guard lock(impl_->mutex);
  ++impl_->taken;
  impl_->changed.notify_all();
}

}  // namespace paceline
