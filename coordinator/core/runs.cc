#include "coordinator/core/runs.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint_name.h"
#include "coordinator/core/limits.h"
#include "coordinator/core/planner.h"

namespace paceline::core {
namespace {

// Generations in a row that got nowhere: a crash loop.
constexpr std::int64_t kInVainMax = 3;

}  // namespace

bool MayFollow(v1::RunState from, v1::RunState to) {
  switch (from) {
    case v1::RUN_STATE_WAITING:
      return to == v1::RUN_STATE_STARTING || to == v1::RUN_STATE_COMPLETED ||
             to == v1::RUN_STATE_STOPPED || to == v1::RUN_STATE_FAILED;
    case v1::RUN_STATE_STARTING:
      return to == v1::RUN_STATE_STOPPING || to == v1::RUN_STATE_WAITING;
    case v1::RUN_STATE_STOPPING:  // a second request to stop changes nothing
      return to == v1::RUN_STATE_STOPPING || to == v1::RUN_STATE_WAITING;
    case v1::RUN_STATE_COMPLETED:
    case v1::RUN_STATE_STOPPED:
    case v1::RUN_STATE_FAILED:
      return to == v1::RUN_STATE_WAITING;
    default:
      return false;
  }
}

bool IsRetryable(const v1::RankFailed& failure) {
  if (failure.signal() != 0) return true;
  switch (static_cast<absl::StatusCode>(failure.status_code())) {
    case absl::StatusCode::kOk:  // it died without a word
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return true;
    default:
      return false;
  }
}

std::string WhyNotAgain(const Run& run) {
  if (!IsRetryable(run.failure)) return "it would fail again";
  if (run.failure.cause() == v1::FAILURE_CAUSE_CHECKPOINT) return "its state could not be kept";
  if (run.file.launch.launcher == "mpi") return "an MPI job ends with a rank of it";
  if (run.in_vain >= kInVainMax) {
    return absl::StrCat(run.in_vain, " generations in a row began at step ", run.plan.start_step(),
                        " and kept nothing; the run had come to step ", run.highest_step);
  }
  if (run.restarts > run.file.failure.max_restarts) {
    return absl::StrCat(
        "[failure] max_restarts = ", run.file.failure.max_restarts,
        run.file.failure.max_restarts == 0 ? ": it is not to go on by itself" : " is used up");
  }
  return "";
}

bool MayBeCorrupt(const Run& run) {
  return run.failure.cause() == v1::FAILURE_CAUSE_CORRUPT_STATE ||
         run.failure.cause() == v1::FAILURE_CAUSE_REPLICAS_DIFFER;
}

bool IsSecondary(const v1::RankFailed& failure) {
  if (failure.signal() != 0) return false;
  switch (static_cast<absl::StatusCode>(failure.status_code())) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return true;
    default:
      return false;
  }
}

v1::FailureCause CauseOf(const v1::RankFailed& failure) {
  if (!failure.damaged_checkpoint().empty()) return v1::FAILURE_CAUSE_CHECKPOINT;
  if (failure.signal() != 0 || failure.exit_code() > 0) return v1::FAILURE_CAUSE_WORKER_EXIT;
  return IsSecondary(failure) ? v1::FAILURE_CAUSE_PEER_LOST : v1::FAILURE_CAUSE_WORKER_ERROR;
}

std::string Describe(const v1::RankFailed& failure, const std::string& node_name) {
  std::string text = absl::StrCat("rank ", failure.rank(), " on ", node_name);
  // What the coordinator found out by itself names the rank already.
  if (failure.cause() == v1::FAILURE_CAUSE_STALL && failure.error().starts_with(text)) {
    return failure.error();
  }
  if (failure.cause() == v1::FAILURE_CAUSE_REPLICAS_DIFFER) return failure.error();
  if (failure.signal() != 0) {
    const char* name = sigabbrev_np(failure.signal());
    absl::StrAppend(
        &text, " was ended by ",
        name != nullptr ? absl::StrCat("SIG", name) : absl::StrCat("signal ", failure.signal()));
  } else if (failure.exit_code() > 0) {
    absl::StrAppend(&text, " exited with code ", failure.exit_code());
  } else {
    absl::StrAppend(&text, " failed");
  }
  if (!failure.error().empty()) absl::StrAppend(&text, ": ", failure.error());
  return text;
}

v1::RankFailed Bounded(const v1::RankFailed& failure) {
  v1::RankFailed out = failure;
  out.set_cause(CauseOf(failure));
  out.set_error(Cut(failure.error(), kMaxErrorBytes));
  out.set_damaged_checkpoint(Cut(failure.damaged_checkpoint(), kMaxPathBytes));
  const int lines = failure.stderr_tail_size();
  const int first = std::max(0, lines - static_cast<int>(kMaxStderrLines));
  out.clear_stderr_tail();
  for (int i = first; i < lines; ++i) {
    out.add_stderr_tail(Cut(failure.stderr_tail(i), kMaxStderrLineBytes));
  }
  return out;
}

absl::StatusOr<RunFile> CheckSubmission(const v1::SubmitRunRequest& request) {
  RETURN_IF_ERROR(CheckName("run_id", request.run_id(), /*may_be_empty=*/false));
  RETURN_IF_ERROR(CheckLength("request_id", request.request_id(), kMaxNameBytes));
  RETURN_IF_ERROR(CheckLength("run_file", request.run_file(), kMaxRunFileBytes));
  RETURN_IF_ERROR(CheckLength("run_dir", request.run_dir(), kMaxPathBytes));
  RETURN_IF_ERROR(CheckLength("corpus_digest", request.corpus_digest(), kMaxNameBytes));
  if (static_cast<std::size_t>(request.damaged_checkpoints_size()) > kMaxDamagedCheckpoints) {
    return absl::InvalidArgumentError(
        absl::StrCat("damaged_checkpoints has ", request.damaged_checkpoints_size(),
                     " entries; at most ", kMaxDamagedCheckpoints, " are taken"));
  }
  if (request.run_dir().empty() || request.run_dir().front() != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("run_dir = \"", request.run_dir(), "\": give an absolute path"));
  }
  ASSIGN_OR_RETURN(
      RunFile file,
      ParseRunFile(request.run_file(), absl::StrCat(request.run_id(), "/run.toml"), "/", {}));
  RETURN_IF_ERROR(LayoutFor(file).status());
  return file;
}

absl::Status CheckTakesUp(const Run& run, const RunFile& next,
                          const v1::SubmitRunRequest& request) {
  const auto differs = [&run](const char* key, const auto& was, const auto& is) {
    return absl::InvalidArgumentError(
        absl::StrCat("run ", run.id(), " cannot be resumed with ", key, " = ", is, ": it was ", was,
                     ", and the order of its samples depends on it; start a new run instead"));
  };
  const RunFile& last = run.file;
  if (next.run.seed != last.run.seed) {
    return differs("[run] seed", last.run.seed, next.run.seed);
  }
  if (next.train.global_batch_size != last.train.global_batch_size) {
    return differs("[train] global_batch_size", last.train.global_batch_size,
                   next.train.global_batch_size);
  }
  if (next.train.sequence_length != last.train.sequence_length) {
    return differs("[train] sequence_length", last.train.sequence_length,
                   next.train.sequence_length);
  }
  if (request.corpus_digest() != run.request.corpus_digest()) {
    return differs("a training corpus of digest", run.request.corpus_digest(),
                   request.corpus_digest());
  }
  if (run.state == v1::RUN_STATE_COMPLETED && next.train.steps <= run.CommittedStep()) {
    return absl::InvalidArgumentError(
        absl::StrCat("run ", run.id(), " is complete: all ", run.CommittedStep(),
                     " steps are done; raise [train] steps to go on"));
  }
  return absl::OkStatus();
}

std::string CheckpointDir(const RunFile& file, const v1::SubmitRunRequest& request) {
  const std::string& dir = file.checkpoint.dir;
  return !dir.empty() && dir.front() == '/' ? dir : absl::StrCat(request.run_dir(), "/", dir);
}

std::string CheckpointDir(const Run& run) { return CheckpointDir(run.file, run.request); }

std::string CheckpointFolder(const Run& run, std::int64_t step) {
  return absl::StrCat(CheckpointDir(run), "/",
                      CheckpointFolderName({step, run.generation.value()}));
}

}  // namespace paceline::core
