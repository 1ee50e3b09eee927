#include "worker/trainer/worker.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/run_file.h"
#include "common/timeouts.h"
#include "spdlog/spdlog.h"
#include "worker/agent/session_client.h"
#include "worker/collectives/exchange_communicator.h"
#include "worker/collectives/gloo/gloo_communicator.h"
#include "worker/trainer/generation_control.h"
#include "worker/trainer/trainer.h"

namespace paceline {
namespace {

constexpr std::chrono::milliseconds kTelemetryInterval{250};
constexpr std::chrono::milliseconds kFlushTimeout{5'000};

std::int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t total = 0;
  std::int64_t resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// Whether the failure is of a collective operation, for want of a peer: nothing is wrong with this
// process.
bool IsPeers(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What the command thread hands to the step thread.
class Worker {
 public:
  Worker(AgentSession& session, const WorkerOptions& options)
      : session_(session),
        mpi_(options.mpi),
        address_(options.address),
        commands_([this](std::stop_token stop) { ReadCommands(stop); }) {}

  absl::Status Run() {
    while (true) {
      ASSIGN_OR_RETURN(const std::optional<Assignment> assignment, NextAssignment());
      if (!assignment.has_value()) return absl::OkStatus();
      const v1::RankStart& start = assignment->start;
      const absl::Status trained = Train(start, *assignment->control);
      if (trained.ok()) {
        spdlog::info("generation {}: finished", start.key().generation());
      } else if (assignment->control->status().ok()) {
        const bool survives = mpi_ == nullptr && IsPeers(trained);
        Report(start, trained, survives);
        if (!survives) return trained;
      } else {
        spdlog::info("generation {}: {}", start.key().generation(), std::string(trained.message()));
        if (mpi_ != nullptr) return trained;
      }
      Leave(start);
    }
  }

 private:
  // A rank of one generation, and what this worker has been told about it since.
  struct Assignment {
    v1::RankStart start;
    std::shared_ptr<GenerationControl> control;
  };

  // Lets telemetry see `trainer` for as long as it exists.
  class Watched {
   public:
    Watched(Worker& worker, const Trainer* trainer) : worker_(worker) { Set(trainer); }
    ~Watched() { Set(nullptr); }
    Watched(const Watched&) = delete;
    Watched& operator=(const Watched&) = delete;

   private:
    void Set(const Trainer* trainer) {
      const std::lock_guard lock(worker_.mutex_);
      worker_.trainer_ = trainer;
    }
    Worker& worker_;
  };

  // The run file, and what every rank of it needs: kept from one generation to the next.
  struct Inputs {
    std::string text;
    RunFile run_file;
    Corpora corpora;  // empty: a trainer has them
  };

  // Nothing once the worker is to exit.
  absl::StatusOr<std::optional<Assignment>> NextAssignment() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(
          lock, [&] { return next_.has_value() || exit_ || !agent_.ok() || warm_up_.has_value(); });
      if (exit_) return std::optional<Assignment>();
      RETURN_IF_ERROR(agent_);
      if (next_.has_value()) return std::exchange(next_, std::nullopt);
      const std::string run_file = *std::exchange(warm_up_, std::nullopt);
      lock.unlock();
      WarmUp(run_file);
      lock.lock();
    }
  }

  void WarmUp(const std::string& run_file) {
    absl::Status loaded = TakeInputs(run_file);
    if (loaded.ok()) {
      absl::StatusOr<Corpora> corpora = OpenCorpora(inputs_->run_file);
      loaded = corpora.status();
      if (corpora.ok()) inputs_->corpora = *std::move(corpora);
    }
    // A rank that begins here tries again, and reports it.
    if (loaded.ok()) {
      spdlog::info("has loaded what a rank needs");
    } else {
      spdlog::warn("not all could be loaded: {}", loaded.ToString());
    }
    {
      const std::lock_guard lock(mutex_);
      warm_ = true;
    }
    SendWarm();
  }

  void SendWarm() {
    v1::WorkerMessage message;
    message.mutable_warm();
    session_.Send(std::move(message));
  }

  // Makes `inputs_` those of the run file `text`.
  absl::Status TakeInputs(const std::string& text) {
    if (inputs_.has_value() && inputs_->text == text) return absl::OkStatus();
    inputs_.reset();
    ASSIGN_OR_RETURN(RunFile run_file, ParseRunFile(text, "run.toml", "/", {}));
    inputs_ = Inputs{text, std::move(run_file), {}};
    return absl::OkStatus();
  }

  // Into the rank's log, where nobody else takes the output there: mpirun's would mix the ranks'.
  static absl::Status Redirect(const std::string& log_path) {
    const int log = ::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log < 0) return ErrnoStatus(errno, "log " + log_path);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    ::close(log);
    return absl::OkStatus();
  }

  absl::Status Train(const v1::RankStart& start, GenerationControl& control) {
    if (mpi_ != nullptr) RETURN_IF_ERROR(Redirect(start.log_path()));
    RETURN_IF_ERROR(TakeInputs(start.run_file()));
    const RunFile& run_file = inputs_->run_file;
    const auto send = [this](v1::WorkerMessage message) { session_.Send(std::move(message)); };
    ASSIGN_OR_RETURN(const auto trainer,
                     Trainer::Create(run_file, start, control, send, std::exchange(held_, {}),
                                     std::exchange(inputs_->corpora, {})));
    const Watched watched(*this, trainer.get());
    absl::Status trained = Train(run_file, start, control, *trainer);
    held_ = trainer->TakeState();
    inputs_->corpora = trainer->TakeCorpora();
    return trained.ok() || control.status().ok() ? trained : control.status();
  }

  absl::Status Train(const RunFile& run_file, const v1::RankStart& start,
                     GenerationControl& control, Trainer& trainer) {
    ASSIGN_OR_RETURN(auto world, Connect(run_file, start, control));
    spdlog::info("generation {}: rank {} of {} trains from step {}", start.key().generation(),
                 start.rank(), world->size(), start.start_step());
    ParallelGroups groups(std::move(world), trainer.layout());
    control.Attach(&groups);
    absl::Status trained = groups.Connect();
    if (trained.ok()) trained = trainer.Run(groups);
    control.Detach();
    return trained;
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Connect(const RunFile& run_file,
                                                        const v1::RankStart& start,
                                                        GenerationControl& control) {
    const Timeouts timeouts = TimeoutsFor(run_file.failure);
    CommunicatorOptions options;
    options.rank = start.rank();
    options.size = start.layout().pipeline() * start.layout().data();
    // A stage waits for its first input, and at the step's end for the last gradient, while every
    // segment before and behind it computes.
    const int segments = start.layout().pipeline() * start.layout().virtual_stages();
    options.operation_timeout = timeouts.collective * std::max(1, 2 * (segments - 1));
    options.connect_timeout = timeouts.startup;
    options.interface_address = address_;
    const auto exchange = [&](const std::string& own) {
      v1::WorkerMessage message;
      v1::RankReady& ready = *message.mutable_ready();
      *ready.mutable_key() = start.key();
      ready.set_rank(start.rank());
      ready.set_address(own);
      session_.Send(std::move(message));
      return control.WaitForPeers();
    };
    if (options.size == 1) {
      // Nobody to connect to, but the coordinator counts who is ready all the same.
      RETURN_IF_ERROR(exchange("").status());
      return MakeSelfCommunicator();
    }
    if (run_file.launch.transport != "mpi") return MakeGlooCommunicator(options, exchange);
    if (mpi_ == nullptr) {
      return absl::InvalidArgumentError(
          "[launch] transport = \"mpi\", but this worker is no rank of an MPI job: its agent "
          "started it; launch it with mpirun");
    }
    RETURN_IF_ERROR(exchange("").status());  // MPI knows the addresses
    ASSIGN_OR_RETURN(std::unique_ptr<Mesh> mesh, mpi_->Connect(options));
    return MakeExchangeCommunicator(options, std::move(mesh));
  }

  void Report(const v1::RankStart& start, const absl::Status& status, bool survives) {
    spdlog::error("rank {}: {}", start.rank(), status.ToString());
    v1::WorkerMessage message;
    v1::RankFailed& failed = *message.mutable_failed();
    *failed.mutable_key() = start.key();
    failed.set_rank(start.rank());
    failed.set_status_code(static_cast<int>(status.code()));
    failed.set_error(std::string(status.message()));
    failed.set_exit_code(-1);
    failed.set_survives(survives);
    if (const auto damaged = status.GetPayload(kDamagedCheckpoint)) {
      failed.set_damaged_checkpoint(std::string(*damaged));
    }
    session_.Send(std::move(message));
    if (!survives) session_.Flush(kFlushTimeout).IgnoreError();
  }

  void Leave(const v1::RankStart& start) {
    v1::WorkerMessage message;
    *message.mutable_left()->mutable_key() = start.key();
    message.mutable_left()->set_rank(start.rank());
    if (held_.has_value()) message.mutable_left()->set_held_step(held_->step);
    session_.Send(std::move(message));
  }

  void ReadCommands(const std::stop_token& stop) {
    auto last_telemetry = std::chrono::steady_clock::now();
    while (!stop.stop_requested()) {
      const absl::StatusOr<v1::WorkerCommand> command = session_.Next(kTelemetryInterval);
      if (command.ok()) {
        Obey(*command);
      } else if (!absl::IsDeadlineExceeded(command.status())) {
        const std::lock_guard lock(mutex_);
        agent_ = command.status();
        if (control_ != nullptr) control_->Abort("the agent has gone");
        changed_.notify_all();
        return;
      }
      const auto now = std::chrono::steady_clock::now();
      if (now - last_telemetry >= kTelemetryInterval) {
        last_telemetry = now;
        SendTelemetry();
      }
    }
  }

  void Obey(const v1::WorkerCommand& command) {
    const std::lock_guard lock(mutex_);
    switch (command.body_case()) {
      case v1::WorkerCommand::kStart:
        control_ = std::make_shared<GenerationControl>(command.start());
        generation_ = command.start().key().generation();
        next_ = Assignment{command.start(), control_};
        break;
      case v1::WorkerCommand::kWarmUp:
        warm_up_ = command.warm_up().run_file();
        break;
      case v1::WorkerCommand::kPeers:
        if (IsCurrent(command.peers().key())) control_->SetPeers(command.peers());
        break;
      case v1::WorkerCommand::kWindowGrant:
        if (IsCurrent(command.window_grant().key())) {
          control_->Grant(command.window_grant().window());
        }
        break;
      case v1::WorkerCommand::kStop:
        if (IsCurrent(command.stop().key())) control_->RequestStop(command.stop());
        break;
      case v1::WorkerCommand::kAbort:
        if (IsCurrent(command.abort().key())) control_->Abort(command.abort().reason());
        break;
      case v1::WorkerCommand::kCheckpointCommitted:
        spdlog::info("checkpoint of step {} is committed: {}",
                     command.checkpoint_committed().step(),
                     command.checkpoint_committed().folder());
        break;
      case v1::WorkerCommand::kExit:
        exit_ = true;
        if (control_ != nullptr) control_->Abort("the agent ended this worker");
        break;
      case v1::WorkerCommand::BODY_NOT_SET:
        spdlog::warn("the agent sent a command that this version does not know; ignored");
        break;
    }
    changed_.notify_all();
  }

  // The lock is held. What belongs to another generation changes nothing.
  bool IsCurrent(const v1::GenerationKey& key) const {
    return control_ != nullptr && key.generation() == generation_;
  }

  void SendTelemetry() {
    v1::WorkerMessage message;
    v1::RankProgress& progress = *message.mutable_progress();
    bool waits = false;
    {
      const std::lock_guard lock(mutex_);
      waits = warm_ && control_ == nullptr;
    }
    if (waits) SendWarm();
    {
      const std::lock_guard lock(mutex_);
      if (trainer_ == nullptr) return;
      progress = trainer_->progress();
      const CommunicatorProgress communication = control_->communication();
      progress.set_operation(communication.operation);
      progress.set_operations_entered(communication.entered);
      progress.set_operations_left(communication.left);
    }
    progress.set_control_wait_seconds(progress.control_wait_seconds() + session_.blocked_seconds());
    progress.set_memory_bytes(ResidentBytes());
    progress.set_cpu_seconds(CpuSeconds());
    session_.Send(std::move(message));
  }

  AgentSession& session_;
  MpiJob* const mpi_;
  const std::string address_;  // of this node
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Assignment> next_;
  std::optional<std::string> warm_up_;          // the run file to load
  bool warm_ = false;                           // it has been, as far as it could be
  std::shared_ptr<GenerationControl> control_;  // of the latest assignment
  std::uint64_t generation_ = 0;
  const Trainer* trainer_ = nullptr;
  std::optional<LiveState> held_;  // the step thread's
  std::optional<Inputs> inputs_;   // likewise
  bool exit_ = false;
  absl::Status agent_;
  std::jthread commands_;  // last: it uses the rest
};

}  // namespace

absl::Status RunWorker(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(const auto session, AgentSession::Connect(options.agent_socket, options.seat,
                                                             options.connect_timeout));
  Worker worker(*session, options);
  return worker.Run();
}

}  // namespace paceline
