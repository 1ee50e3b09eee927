#include "worker/agent/snapshot_copier.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "common/timeouts.h"
#include "common/token.h"
#include "paceline/v1/snapshots.grpc.pb.h"
#include "worker/agent/snapshot_folder.h"
#include "worker/checkpoint/snapshot_file.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kThreadsMax = 8;
constexpr std::int64_t kSnapshotBytesMax = std::int64_t{1} << 40;
constexpr std::size_t kDigestBytes = 32;
constexpr milliseconds kWait{5'000};    // for a snapshot that has yet to be taken
constexpr milliseconds kPauseMin{100};  // after a failure
constexpr milliseconds kPauseMax{5'000};
constexpr int kNiceness = 10;

absl::Status ToAbsl(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

std::unique_ptr<v1::Snapshots::Stub> StubFor(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(kKeepalive.count()));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(kKeepalive.count()));
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A channel shared between tasks would keep its own, longer, pause after a failure.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::Snapshots::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

absl::Status CheckHead(const v1::ReadSnapshotRequest& asked, const v1::SnapshotHead& head) {
  const bool wanted =
      asked.at_step() > 0 ? head.step() == asked.at_step() : head.step() > asked.after_step();
  if (wanted && head.bytes() > 0 && head.bytes() <= kSnapshotBytesMax &&
      head.digest().size() == kDigestBytes) {
    return absl::OkStatus();
  }
  return absl::DataLossError("the agent answers with a snapshot of step " +
                             std::to_string(head.step()) + " and " + std::to_string(head.bytes()) +
                             " bytes, which was not asked for");
}

// The newest step of which a whole copy lies here.
std::int64_t NewestCopy(const std::string& folder, const v1::ReadSnapshotRequest& asked) {
  std::int64_t newest = -1;
  for (const int which : {0, 1}) {
    const absl::StatusOr<SnapshotHead> head =
        ReadSnapshotHead(SnapshotPath(folder, asked.rank(), which));
    if (!head.ok() || head->run_id != asked.run_id()) continue;
    if (head->generation != asked.generation() && head->step > asked.base_step()) continue;
    newest = std::max(newest, head->step);
  }
  return newest;
}

}  // namespace

// One task and the threads that do it, after the one before has ended.
class SnapshotCopier::Batch {
 public:
  Batch(const SnapshotCopierOptions& options, std::unique_ptr<Batch> former)
      : options_(options), former_(std::move(former)) {
    if (former_ != nullptr) former_->Cancel();
  }
  ~Batch() {
    Cancel();
    if (thread_.joinable()) thread_.join();
  }

  void Begin(CopySnapshots task) {
    thread_ = std::thread([this, task = std::move(task)] {
      former_.reset();
      const std::size_t count = std::min(task.copies.size(), kThreadsMax);
      std::vector<std::thread> threads;
      for (std::size_t i = 0; i < count; ++i) {
        threads.emplace_back([this, &task, i, count] { Follow(task, i, count); });
      }
      for (std::thread& thread : threads) thread.join();
    });
  }
  void Begin(FetchSnapshots task) {
    thread_ = std::thread([this, task = std::move(task)] {
      former_.reset();
      FetchAll(task);
    });
  }
  // Whatever is under way ends soon.
  void Cancel() {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    for (grpc::ClientContext* call : calls_) call->TryCancel();
    changed_.notify_all();
  }

 private:
  struct Pulled {
    std::int64_t step = 0;
    std::int64_t bytes = 0;
  };

  void Follow(const CopySnapshots& task, std::size_t first, std::size_t stride);
  void FetchAll(const FetchSnapshots& task);
  absl::StatusOr<Pulled> Pull(v1::Snapshots::Stub& stub, const v1::GenerationKey& key,
                              const v1::ReadSnapshotRequest& request, milliseconds limit);
  absl::StatusOr<Pulled> Receive(grpc::ClientReader<v1::SnapshotChunk>& reader,
                                 const v1::GenerationKey& key,
                                 const v1::ReadSnapshotRequest& request, bool& ended);

  bool cancelled() {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }
  void Pause(milliseconds pause) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, pause, [this] { return cancelled_; });
  }
  std::string Folder(const std::string& run_id) const {
    return SnapshotCopiesFolder(options_.root, run_id, options_.node);
  }

  const SnapshotCopierOptions& options_;
  std::unique_ptr<Batch> former_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool cancelled_ = false;
  std::set<grpc::ClientContext*> calls_;
  std::thread thread_;
};

absl::StatusOr<SnapshotCopier::Batch::Pulled> SnapshotCopier::Batch::Pull(
    v1::Snapshots::Stub& stub, const v1::GenerationKey& key, const v1::ReadSnapshotRequest& request,
    milliseconds limit) {
  ASSIGN_OR_RETURN(const std::string token, ReadToken(options_.token_file));
  grpc::ClientContext context;
  context.AddMetadata("authorization", BearerOf(token));
  context.set_deadline(std::chrono::system_clock::now() + limit);
  {
    const std::lock_guard lock(mutex_);
    if (cancelled_) return absl::CancelledError("the generation has ended");
    calls_.insert(&context);
  }
  const auto reader = stub.ReadSnapshot(&context, request);
  bool ended = false;
  absl::StatusOr<Pulled> pulled = Receive(*reader, key, request, ended);
  if (!ended) context.TryCancel();  // or Finish would wait for what nobody reads
  const grpc::Status status = reader->Finish();
  {
    const std::lock_guard lock(mutex_);
    calls_.erase(&context);
  }
  // Why the stream ended early, or was of no use, says more than that it did.
  const bool told_why =
      absl::IsUnavailable(pulled.status()) || status.error_code() == grpc::StatusCode::ABORTED;
  return !pulled.ok() && !status.ok() && told_why ? ToAbsl(status) : pulled;
}

// kUnavailable: the stream has ended early. `ended`: nothing more will come.
absl::StatusOr<SnapshotCopier::Batch::Pulled> SnapshotCopier::Batch::Receive(
    grpc::ClientReader<v1::SnapshotChunk>& reader, const v1::GenerationKey& key,
    const v1::ReadSnapshotRequest& request, bool& ended) {
  v1::SnapshotChunk chunk;
  ended = !reader.Read(&chunk);
  if (ended) return absl::UnavailableError("it ended before it began");
  const v1::SnapshotHead told = chunk.head();
  RETURN_IF_ERROR(CheckHead(request, told));
  const std::string folder = Folder(request.run_id());
  {
    const std::lock_guard lock(mutex_);
    if (cancelled_) return absl::CancelledError("the generation has ended");
  }
  std::error_code ignored;  // what fails shows when the file is opened
  std::filesystem::create_directories(folder, ignored);
  const SnapshotTurn turn = NextSnapshot(folder,
                                         {.run_id = request.run_id(),
                                          .generation = request.generation(),
                                          .rank = request.rank(),
                                          .step = told.step()},
                                         request.base_step());
  const auto bytes = static_cast<std::size_t>(told.bytes());
  ASSIGN_OR_RETURN(SnapshotFile file,
                   SnapshotFile::Open(SnapshotPath(folder, request.rank(), turn.which), bytes));
  if (turn.loses_step >= 0) options_.on_lost({key, request.rank(), turn.loses_step});
  {
    const std::lock_guard lock(mutex_);
    if (cancelled_) return absl::CancelledError("the generation has ended");
    file.Begin();
  }
  std::size_t at = 0;
  while (reader.Read(&chunk)) {
    if (chunk.data().size() > bytes - at) {
      return absl::DataLossError("it has more than the " + std::to_string(bytes) +
                                 " bytes that its head tells");
    }
    std::memcpy(file.bytes().data() + at, chunk.data().data(), chunk.data().size());
    at += chunk.data().size();
  }
  ended = true;
  if (at < bytes) {
    return absl::UnavailableError("it ended after " + std::to_string(at) + " of " +
                                  std::to_string(bytes) + " bytes");
  }
  RETURN_IF_ERROR(file.FinishCopy({.run_id = request.run_id(),
                                   .generation = told.generation(),
                                   .rank = request.rank(),
                                   .step = told.step()},
                                  told.digest()));
  return Pulled{told.step(), told.bytes()};
}

// Of the task's copies every `stride`th, in turn.
void SnapshotCopier::Batch::Follow(const CopySnapshots& task, std::size_t first,
                                   std::size_t stride) {
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNiceness);  // of this thread alone
  struct Copy {
    std::unique_ptr<v1::Snapshots::Stub> stub;
    v1::ReadSnapshotRequest request;
    const v1::SnapshotCopy& of;
  };
  std::vector<Copy> copies;
  for (std::size_t i = first; i < task.copies.size(); i += stride) {
    copies.push_back({StubFor(task.copies[i].address()), {}, task.copies[i]});
    v1::ReadSnapshotRequest& request = copies.back().request;
    request.set_run_id(task.key.run_id());
    request.set_rank(task.copies[i].rank());
    request.set_generation(task.key.generation());
    request.set_base_step(task.base_step);
    request.set_after_step(NewestCopy(Folder(task.key.run_id()), request));
  }
  for (Copy& copy : copies) {
    copy.request.set_wait_ms(static_cast<std::int32_t>(kWait.count()) /
                             static_cast<std::int32_t>(copies.size()));
  }
  milliseconds pause = kPauseMin;
  while (!cancelled()) {
    for (Copy& copy : copies) {
      absl::StatusOr<Pulled> pulled = Pull(*copy.stub, task.key, copy.request, kCopyLimit);
      if (cancelled()) return;
      if (pulled.ok()) {
        pause = kPauseMin;
        copy.request.set_after_step(pulled->step);
        options_.on_copied({task.key, copy.of.rank(), {}, pulled->step, pulled->bytes});
      } else if (!absl::IsNotFound(pulled.status())) {  // there was a newer one
        spdlog::warn("no copy of rank {}'s snapshot on {}: {}", copy.of.rank(), copy.of.node(),
                     pulled.status().ToString());
        options_.on_copied({task.key, copy.of.rank(), pulled.status()});
        Pause(pause);
        pause = std::min(pause * 2, kPauseMax);
      }
    }
  }
}

void SnapshotCopier::Batch::FetchAll(const FetchSnapshots& task) {
  const auto end = std::chrono::steady_clock::now() + task.limit;
  for (const v1::SnapshotSource& source : task.sources) {
    v1::ReadSnapshotRequest request;
    request.set_run_id(task.key.run_id());
    request.set_rank(source.from());
    request.set_generation(task.key.generation());
    request.set_base_step(task.step);
    request.set_at_step(task.step);
    const auto left =
        std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
    const std::unique_ptr<v1::Snapshots::Stub> stub = StubFor(source.address());
    absl::StatusOr<Pulled> pulled = Pull(*stub, task.key, request, std::max(left, milliseconds(1)));
    if (pulled.ok()) {
      spdlog::info("fetched rank {}'s snapshot of step {} from {}: {} bytes", source.from(),
                   task.step, source.node(), pulled->bytes);
    }
    options_.on_fetched({task.key, source, pulled.status(), pulled.ok() ? pulled->bytes : 0});
  }
}

SnapshotCopier::SnapshotCopier(SnapshotCopierOptions options) : options_(std::move(options)) {}
SnapshotCopier::~SnapshotCopier() = default;

void SnapshotCopier::Copy(const CopySnapshots& task) {
  key_ = task.key;
  batch_ = std::make_unique<Batch>(options_, std::move(batch_));
  batch_->Begin(task);
}

void SnapshotCopier::Fetch(const FetchSnapshots& task) {
  key_ = task.key;
  batch_ = std::make_unique<Batch>(options_, std::move(batch_));
  batch_->Begin(task);
}

void SnapshotCopier::Stop(const v1::GenerationKey& key) {
  const bool same = key.run_id() == key_.run_id() && key.generation() == key_.generation();
  if (batch_ != nullptr && same) batch_->Cancel();
}

}  // namespace paceline
