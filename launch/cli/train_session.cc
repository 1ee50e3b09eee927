#include "launch/cli/train_session.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "common/clock.h"
#include "common/run_file_place.h"
#include "common/run_state.h"
#include "common/status.h"
#include "common/timeouts.h"
#include "common/token.h"
#include "launch/cli/coordinator_client.h"
#include "launch/cli/display.h"
#include "launch/cli/interrupts.h"
#include "launch/cli/progress_output.h"
#include "launch/cli/status_json.h"
#include "launch/cli/summary.h"
#include "launch/local/local_cluster.h"
#include "launch/mpi/mpirun.h"
#include "launch/mpi/restarts.h"
#include "nlohmann/json.hpp"
#include "worker/data/corpus.h"

namespace paceline::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr milliseconds kPollInterval{300};
constexpr milliseconds kSubmitRetryInterval{100};
constexpr seconds kStartTimeout{30};
constexpr seconds kSilence{10};  // of the coordinator, until the user is told
constexpr seconds kSummaryTimeout{15};
constexpr seconds kStopTimeout{10};
// A program that dies over and over is broken, not unlucky: this many ends of it, none of which
// came later than so long after its start.
constexpr int kQuickEndsMax = 3;
constexpr seconds kQuickEnd{3};

class Session {
 public:
  explicit Session(const TrainRequest& request)
      : request_(request),
        timeouts_(TimeoutsFor(request.run_file.failure.budget_ms)),
        output_(request.json ? stderr : stdout) {}

  // Until the run has ended or the user wants out at once.
  absl::Status Run() {
    RETURN_IF_ERROR(Start());
    const absl::Status watched = Watch();
    if (absl::IsCancelled(watched)) {  // Ctrl-C twice
      cluster_->Kill();
      return absl::OkStatus();
    }
    const bool summary_written = watched.ok() && WaitForSummary();
    EndChildren(/*gently=*/watched.ok());
    if (!watched.ok()) return watched;
    if (!summary_written) output_.Event("the coordinator wrote no summary.json in time");
    return absl::OkStatus();
  }

  // Whether the run has failed in passing, so that an MPI job may be started again.
  bool MayGoOn() const {
    return interrupts_.count() == 0 && view_.status.state() == v1::RUN_STATE_FAILED &&
           view_.status.retryable();
  }
  const v1::RunStatus& status() const { return view_.status; }
  void Say(const std::string& event) { output_.Event(event); }

  ExitCode Conclude() {
    output_.Finish();
    if (!HasEnded(view_.status.state())) {  // Ctrl-C twice
      output_.Event("stopped at once, without a last checkpoint");
      output_.Event("next: " + ResumeCommand(request_.folder, request_.run_dir));
      return ExitCode::kInterrupted;
    }
    const nlohmann::json summary = SummaryOf(request_.folder, view_);
    if (request_.json) PrintJson(summary);
    const Conclusion conclusion =
        ConclusionOf(request_.folder, request_.run_dir, view_.status, summary);
    const bool failed =
        conclusion.exit_code != ExitCode::kDone && conclusion.exit_code != ExitCode::kInterrupted;
    for (const std::string& line : conclusion.lines) {
      if (failed) {
        std::cerr << line << std::endl;
      } else {
        output_.Event(line);
      }
    }
    return conclusion.exit_code;
  }

 private:
  struct Restarts {
    SteadyTime started{};  // anew, for the last time
    int quick_ends = 0;    // the latest, in a row
  };
  struct EndedNode {
    std::string text;
    ProcessExit exit;
  };

  absl::Status Start() {
    ASSIGN_OR_RETURN(const std::string token, ReadOrMakeToken(request_.folder.Token()));
    LocalClusterOptions options{
        .program_folder = ProgramFolder(),
        .run_id = request_.folder.run_id,
        .state_folder = request_.folder.CoordinatorState(),
        .coordinator_json = request_.folder.CoordinatorState() + "/coordinator.json",
        .token_path = request_.folder.Token(),
        .log_folder = request_.folder.Logs(),
        .nodes = request_.run_file.launch.nodes + request_.run_file.launch.spares,
        .slots_per_node = request_.run_file.launch.slots_per_node};
    if (request_.run_file.launch.launcher == "mpi") {
      options.job = MpirunCommand({.program_folder = options.program_folder,
                                   .run_id = options.run_id,
                                   .coordinator_json = options.coordinator_json,
                                   .token_path = options.token_path,
                                   .log_folder = options.log_folder,
                                   .ranks = request_.run_file.WorldSize(),
                                   .slots_per_node = options.slots_per_node});
    }
    ASSIGN_OR_RETURN(cluster_, LocalCluster::Start(std::move(options), kStartTimeout));
    token_ = token;
    Connect();
    RETURN_IF_ERROR(Submit());
    // A run that had nothing left to do has ended already, and would keep no agent.
    if (Look() && HasEnded(view_.status.state())) {
      output_.Event(view_.status.reason());
      return absl::OkStatus();
    }
    return cluster_->StartNodes();
  }

  absl::Status Submit() {
    v1::SubmitRunRequest request;
    request.set_request_id(MakeRequestId());
    request.set_run_id(request_.folder.run_id);
    request.set_run_file(ToToml(WithAbsolutePaths(request_.folder, request_.run_file)));
    request.set_run_dir(request_.folder.path);
    request.set_corpus_digest(request_.corpus.digest);
    request.set_corpus_samples(request_.corpus.samples);
    request.set_resume(request_.resume);
    for (const v1::DamagedCheckpoint& damaged : request_.damaged_checkpoints) {
      *request.add_damaged_checkpoints() = damaged;
    }
    // Nodes of a stretch that ended without a word keep the run until their leases have ended,
    // which are twice as long after a restart.
    const auto deadline = steady_clock::now() + kStartTimeout + 2 * timeouts_.lease;
    while (true) {
      const absl::Status status = client_->SubmitRun(request);
      const bool passing = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
      if (!passing || steady_clock::now() >= deadline) return status;
      WaitForEvent(kSubmitRetryInterval);
      if (interrupts_.count() > 0) return absl::CancelledError("interrupted before the start");
    }
  }

  // Until the run has ended. kCancelled: the user wants out at once. Other errors: nobody is
  // left who could finish the run.
  absl::Status Watch() {
    answered_ = steady_clock::now();
    while (true) {
      if (interrupts_.count() >= 2) return absl::CancelledError("interrupted twice");
      if (interrupts_.count() == 1) AskToStop();
      RETURN_IF_ERROR(TendChildren());
      if (Look() && HasEnded(view_.status.state())) return absl::OkStatus();
      if (!ended_job_.empty() && view_.status.state() == v1::RUN_STATE_WAITING) {
        return GiveUp(ended_job_ + "; the run cannot begin without it");
      }
      RETURN_IF_ERROR(RestartNodes());
      WaitForEvent(kPollInterval);
    }
  }

  void Connect() {
    client_ = std::make_unique<CoordinatorClient>(cluster_->coordinator().address, token_);
  }

  // False: the coordinator did not answer; it is dead (and told so by its end), replaced, or busy.
  bool Look() {
    absl::StatusOr<v1::RunStatus> status = client_->GetRun(request_.folder.run_id);
    if (!status.ok()) {
      if (cluster_->FindNextCoordinator()) {
        SayWhoLeads();
      } else {
        SayThatNobodyLeads();
      }
      return false;
    }
    answered_ = steady_clock::now();
    told_of_silence_ = false;
    view_ = {.status = *std::move(status), .live = true};
    output_.Show(reporter_.Update(view_.status, Elapsed()));
    return true;
  }

  void SayWhoLeads() {
    const CoordinatorFile& file = cluster_->coordinator();
    output_.Event("the coordinator of epoch " + std::to_string(file.epoch) + " leads (" +
                  file.host + ", process " + std::to_string(file.pid) + ")");
    Connect();
  }

  // Once, where it does not pass by itself: the coordinator waits for its disk, or was stopped.
  void SayThatNobodyLeads() {
    if (told_of_silence_ || steady_clock::now() - answered_ < kSilence) return;
    told_of_silence_ = true;
    const CoordinatorFile& file = cluster_->coordinator();
    output_.Event("no coordinator has answered for " + std::to_string(kSilence.count()) +
                  " s (the last one was process " + std::to_string(file.pid) + " on " + file.host +
                  "); workers train on to the end of what they were granted; its log is " +
                  request_.folder.Logs() + "/" + kCoordinator + ".log");
  }

  void AskToStop() {
    if (!stop_request_.has_value()) {
      output_.Event("stopping: a last checkpoint, then the end (Ctrl-C again: at once)");
      stop_request_.emplace();
      stop_request_->set_request_id(MakeRequestId());
      stop_request_->set_run_id(request_.folder.run_id);
      stop_request_->set_reason("the user interrupted it");
    }
    // A repeat is harmless; a lost request is sent again.
    if (!stop_taken_) stop_taken_ = client_->StopRun(*stop_request_).ok();
  }

  // Reports children that have ended. A coordinator is started again at once: workers keep stepping
  // without one, and agents find the next.
  absl::Status TendChildren() {
    for (const LocalCluster::Ended& ended : cluster_->TakeEnded()) {
      // The last words of a killed child are about something else.
      const bool has_words = ended.exit.signal == 0 && !ended.stderr_tail.empty();
      const std::string end = ended.name + " ended unexpectedly (" + ToString(ended.exit) +
                              (has_words ? "; " + ended.stderr_tail.back() : "") +
                              "); its log is " + ended.log_path;
      if (ended.name == kCoordinator) {
        output_.Event(end);
        RETURN_IF_ERROR(MayLead(ended.exit, end));
        RETURN_IF_ERROR(MayRestart(ended.name, end));
        output_.Event("starting the coordinator again");
        RETURN_IF_ERROR(cluster_->RestartCoordinator());
      } else if (ended.name == kMpirun) {
        ended_job_ = end;
        if (!ended.exit.clean()) output_.Event(end);
      } else {
        ended_nodes_[ended.name] = {end, ended.exit};
      }
    }
    return absl::OkStatus();
  }

  // One that was started again and ended before it led, because of what a person has to look at,
  // would do so again.
  absl::Status MayLead(const ProcessExit& exit, const std::string& end) {
    if (cluster_->FindNextCoordinator()) SayWhoLeads();
    const auto epoch = cluster_->coordinator().epoch;
    if (std::exchange(restarted_at_epoch_, epoch) != epoch) return absl::OkStatus();
    if (exit.exit_code == static_cast<int>(ExitCode::kBadInput)) {
      return absl::InvalidArgumentError(end);
    }
    if (exit.exit_code == static_cast<int>(ExitCode::kBroken)) return absl::DataLossError(end);
    return absl::OkStatus();
  }

  // Agents that the run's end did not release.
  absl::Status RestartNodes() {
    for (const auto& [name, ended] : std::exchange(ended_nodes_, {})) {
      output_.Event(ended.text);
      if (ended.exit.exit_code == static_cast<int>(ExitCode::kBadInput)) return GiveUp(ended.text);
      if (const absl::Status may = MayRestart(name, ended.text); !may.ok()) {
        RETURN_IF_ERROR(GiveUpNode(name, may));
        continue;
      }
      output_.Event("starting " + name + " again");
      RETURN_IF_ERROR(cluster_->RestartNode(name));
    }
    return absl::OkStatus();
  }

  absl::Status MayRestart(const std::string& name, const std::string& end) {
    Restarts& child = restarts_[name];
    const SteadyTime now = steady_clock::now();
    child.quick_ends = now - child.started < kQuickEnd ? child.quick_ends + 1 : 0;
    child.started = now;
    if (child.quick_ends < kQuickEndsMax) return absl::OkStatus();
    return GiveUp(end + "; it ended " + std::to_string(kQuickEndsMax) + " times within " +
                  std::to_string(kQuickEnd.count()) + " s of its start");
  }

  // A run that can go on without the node does.
  absl::Status GiveUpNode(const std::string& name, const absl::Status& why) {
    const LaunchSection& launch = request_.run_file.launch;
    given_up_.insert(name);
    const auto left = launch.nodes + launch.spares - static_cast<std::int64_t>(given_up_.size());
    if (left < launch.MinNodes()) return why;
    output_.Event(name + " is not started again: its agent ended " + std::to_string(kQuickEndsMax) +
                  " times within " + std::to_string(kQuickEnd.count()) + " s of its start");
    return absl::OkStatus();
  }

  absl::Status GiveUp(const std::string& reason) const {
    return absl::UnavailableError(reason +
                                  "\nnext: " + ResumeCommand(request_.folder, request_.run_dir));
  }

  // The coordinator writes it after the run's end is durable.
  bool WaitForSummary() {
    const auto deadline = steady_clock::now() + kSummaryTimeout;
    std::error_code error;
    while (!std::filesystem::exists(request_.folder.Summary(), error)) {
      if (steady_clock::now() >= deadline || interrupts_.count() >= 2) return false;
      WaitForEvent(milliseconds{20});
    }
    Look();  // costs may have been closed since
    return true;
  }

  void EndChildren(bool gently) {
    // The coordinator releases the agents; they end their workers first.
    if (gently) cluster_->WaitForNodes(timeouts_.shutdown + kStopTimeout);
    cluster_->Stop(kStopTimeout);
  }

  void WaitForEvent(milliseconds timeout) {
    pollfd descriptors[2] = {{.fd = cluster_->event_fd(), .events = POLLIN, .revents = 0},
                             {.fd = interrupts_.event_fd(), .events = POLLIN, .revents = 0}};
    ::poll(descriptors, 2, static_cast<int>(timeout.count()));
    interrupts_.Drain();
  }

  double Elapsed() const { return SecondsBetween(began_, steady_clock::now()); }

  const TrainRequest& request_;
  const Timeouts timeouts_;
  const SteadyTime began_ = steady_clock::now();
  SteadyTime answered_ = began_;  // the coordinator, for the last time
  std::optional<std::uint64_t> restarted_at_epoch_;
  bool told_of_silence_ = false;
  Interrupts interrupts_;
  ProgressOutput output_;
  ProgressReporter reporter_{/*plain=*/!output_.is_terminal()};
  std::unique_ptr<LocalCluster> cluster_;
  std::unique_ptr<CoordinatorClient> client_;
  std::string token_;
  RunView view_;
  std::optional<v1::StopRunRequest> stop_request_;
  bool stop_taken_ = false;
  std::map<std::string, Restarts> restarts_;      // of children, by name
  std::map<std::string, EndedNode> ended_nodes_;  // to be started again, by name
  std::set<std::string> given_up_;                // nodes
  std::string ended_job_;                         // how the MPI job ended; empty: it lives
};

}  // namespace

absl::StatusOr<CorpusFacts> CheckData(const RunFile& run_file, const RunFileSource& source) {
  const auto named = [&source](const absl::Status& status, const char* key) {
    return Annotate(status, KeyPlace(source.path, source.overrides, "data", key));
  };
  CorpusFacts facts;
  const auto train =
      SampleOrder::Open(run_file.data.train, run_file.train.sequence_length,
                        run_file.model.vocab_size, run_file.run.seed, /*shuffle=*/true);
  if (!train.ok()) return named(train.status(), "train");
  RETURN_IF_ERROR(named((*train)->Verify(), "train"));
  facts.digest = (*train)->digest();
  facts.samples = (*train)->samples_per_epoch();
  facts.tokens = (*train)->tokens();
  if (!run_file.data.valid.empty()) {
    const auto valid =
        SampleOrder::Open(run_file.data.valid, run_file.train.sequence_length,
                          run_file.model.vocab_size, run_file.run.seed, /*shuffle=*/false);
    if (!valid.ok()) return named(valid.status(), "valid");
    RETURN_IF_ERROR(named((*valid)->Verify(), "valid"));
    facts.valid_tokens = (*valid)->tokens();
  }
  return facts;
}

// An MPI job that has lost a rank is over; the next one goes on, as `resume` does.
absl::StatusOr<ExitCode> Train(const TrainRequest& request) {
  TrainRequest stretch = request;
  MpiRestarts restarts;
  while (true) {
    Session session(stretch);
    RETURN_IF_ERROR(session.Run());
    if (request.run_file.launch.launcher != "mpi" || !session.MayGoOn()) return session.Conclude();
    session.Say("the MPI job has failed: " + FailureText(session.status()));
    const std::int64_t step = session.status().checkpoint_step();
    if (!restarts.Allow(step)) {
      session.Say("it has failed " + std::to_string(restarts.without_progress()) +
                  " times since the last committed step, " + std::to_string(step));
      return session.Conclude();
    }
    session.Say("starting the next MPI job from " +
                (step == 0 ? "the beginning" : "step " + std::to_string(step)) + " (" +
                std::to_string(restarts.without_progress()) + " of " +
                std::to_string(MpiRestarts::kMaxWithoutProgress) + " without a new checkpoint)");
    stretch.resume = true;
    stretch.damaged_checkpoints.clear();
    std::error_code error;
    std::filesystem::remove(request.folder.Summary(), error);  // it tells of the stretch before
  }
}

}  // namespace paceline::cli
