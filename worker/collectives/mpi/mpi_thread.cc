#include "worker/collectives/mpi/mpi_thread.h"

#include <sys/prctl.h>

#include <algorithm>
#include <string>
#include <utility>

namespace paceline {
namespace {

// A pause of some microseconds would otherwise take the kernel's default slack of 50.
constexpr unsigned long kTimerSlackNanoseconds = 1000;

absl::Status Initialise() {
  int provided = MPI_THREAD_SINGLE;
  RETURN_IF_ERROR(MpiStatus(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided),
                            "MPI_Init_thread"));
  if (provided < MPI_THREAD_FUNNELED) {
    return absl::FailedPreconditionError(
        "this MPI was built without threads (MPI_THREAD_FUNNELED); install one with them");
  }
  return MpiStatus(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN),
                   "MPI_Comm_set_errhandler");
}

// Receives first, so that what arrives has a place.
absl::Status Post(MpiTransfers& transfers) {
  const std::size_t count = transfers.transfers.size();
  transfers.requests.assign(count, MPI_REQUEST_NULL);
  transfers.statuses.resize(count);
  transfers.indices.resize(count);
  for (const bool receives : {true, false}) {
    for (std::size_t i = 0; i < count; ++i) {
      const MpiTransfers::Transfer& one = transfers.transfers[i];
      if (one.receives != receives) continue;
      RETURN_IF_ERROR(
          MpiStatus(receives ? MPI_Irecv(one.data, one.bytes, MPI_BYTE, one.peer, transfers.tag,
                                         transfers.communicator, &transfers.requests[i])
                             : MPI_Isend(one.data, one.bytes, MPI_BYTE, one.peer, transfers.tag,
                                         transfers.communicator, &transfers.requests[i]),
                    receives ? "MPI_Irecv" : "MPI_Isend"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckReceived(const MpiTransfers::Transfer& transfer, const MPI_Status& status) {
  int bytes = 0;
  if (transfer.receives) MPI_Get_count(&status, MPI_BYTE, &bytes);
  if (!transfer.receives || bytes == transfer.bytes) return absl::OkStatus();
  return absl::InternalError("received " + std::to_string(bytes) + " bytes where " +
                             std::to_string(transfer.bytes) +
                             " were expected: the ranks do not run the same operations");
}

// How many transfers ended since the last call.
absl::StatusOr<int> Test(MpiTransfers& transfers) {
  int ended = 0;
  const int error =
      MPI_Testsome(static_cast<int>(transfers.requests.size()), transfers.requests.data(), &ended,
                   transfers.indices.data(), transfers.statuses.data());
  if (error != MPI_SUCCESS && error != MPI_ERR_IN_STATUS) return MpiStatus(error, "MPI_Testsome");
  if (ended == MPI_UNDEFINED) return 0;  // none is left
  for (int i = 0; i < ended; ++i) {
    const MPI_Status& status = transfers.statuses[static_cast<std::size_t>(i)];
    const auto at = static_cast<std::size_t>(transfers.indices[static_cast<std::size_t>(i)]);
    MpiTransfers::Transfer& transfer = transfers.transfers[at];
    if (error == MPI_ERR_IN_STATUS) {
      RETURN_IF_ERROR(MpiStatus(status.MPI_ERROR, transfer.receives ? "MPI_Irecv" : "MPI_Isend"));
    }
    RETURN_IF_ERROR(CheckReceived(transfer, status));
    transfer.done = true;
  }
  return ended;
}

}  // namespace

absl::Status MpiStatus(int error, const char* call) {
  if (error == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(error, text, &length);
  return absl::UnavailableError(std::string(call) + ": " + text);
}

absl::StatusOr<std::unique_ptr<MpiThread>> MpiThread::Start() {
  std::unique_ptr<MpiThread> made(new MpiThread());
  made->called_ = std::make_shared<Called>(Called{.call = Initialise});
  const std::shared_ptr<Called> begun = made->called_;
  made->thread_ = std::jthread([thread = made.get()] { thread->Loop(); });
  std::unique_lock lock(made->mutex_);
  made->changed_.wait(lock, [&] { return begun->ended; });
  RETURN_IF_ERROR(begun->status);
  return made;
}

MpiThread::~MpiThread() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  wake_.notify_all();
}

absl::Status MpiThread::Call(std::function<absl::Status()> call, SteadyTime deadline) {
  const auto called = std::make_shared<Called>(Called{.call = std::move(call)});
  std::unique_lock lock(mutex_);
  if (!halted_.ok()) return halted_;
  called_ = called;
  wake_.notify_all();
  if (changed_.wait_until(lock, deadline, [&] { return called->ended; })) return called->status;
  return absl::DeadlineExceededError("MPI did not return in time");
}

absl::Status MpiThread::Run(MpiTransfers& transfers, SteadyTime deadline) {
  std::unique_lock lock(mutex_);
  if (!halted_.ok()) return halted_;
  transfers.ended = false;
  submitted_.push_back(&transfers);
  wake_.notify_all();
  const auto ended = [&] { return transfers.ended; };
  if (changed_.wait_until(lock, deadline, ended)) return transfers.status;
  if (halted_.ok()) halted_ = absl::AbortedError(transfers.where() + " did not end in time");
  wake_.notify_all();
  // The thread is between two calls of MPI that do not block, so this comes at once.
  changed_.wait(lock, ended);
  return absl::DeadlineExceededError("");
}

void MpiThread::Halt(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (halted_.ok()) halted_ = absl::AbortedError(reason);
  wake_.notify_all();
}

void MpiThread::AbortJob(int exit_code, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  abort_code_ = exit_code;
  wake_.notify_all();
  changed_.wait_for(lock, timeout, [] { return false; });
}

void MpiThread::EndAllLocked() {
  active_.insert(active_.end(), submitted_.begin(), submitted_.end());
  submitted_.clear();
  for (MpiTransfers* transfers : active_) {
    transfers->status = halted_;
    transfers->ended = true;
  }
  active_.clear();
}

void MpiThread::End(MpiTransfers& transfers, absl::Status status) {
  const std::lock_guard lock(mutex_);
  // Peers may still write into what a failed exchange leaves behind.
  if (!status.ok() && halted_.ok()) {
    halted_ = absl::AbortedError(transfers.where() + ": " + std::string(status.message()));
  }
  transfers.status = std::move(status);
  transfers.ended = true;
  changed_.notify_all();
}

void MpiThread::Begin(MpiTransfers& transfers) {
  absl::Status status = Post(transfers);
  if (!status.ok()) return End(transfers, std::move(status));
  active_.push_back(&transfers);
}

// One round over what is under way. True: something moved.
bool MpiThread::Poll() {
  bool progressed = false;
  std::erase_if(active_, [&](MpiTransfers* transfers) {
    const absl::StatusOr<int> ended = Test(*transfers);
    progressed |= !ended.ok() || *ended > 0;
    const bool over =
        !ended.ok() || std::all_of(transfers->transfers.begin(), transfers->transfers.end(),
                                   [](const auto& one) { return one.done; });
    if (over) End(*transfers, ended.status());
    return over;
  });
  return progressed;
}

// Until there is something to do, or it is time to look again.
void MpiThread::Pause(std::unique_lock<std::mutex>& lock, bool progressed) {
  const auto asked = [this] {
    return stopping_ || abort_code_ != 0 || called_ != nullptr || !submitted_.empty() ||
           !halted_.ok();
  };
  if (active_.empty()) {
    if (wake_.wait_for(lock, kIdlePoll, asked)) return;
    int arrived = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_SELF, &arrived, MPI_STATUS_IGNORE);
    return;
  }
  const SteadyTime now = std::chrono::steady_clock::now();
  if (progressed) {
    progress_at_ = now;
    pause_ = kPauseMin;
  }
  if (now - progress_at_ < kSpin) return;
  wake_.wait_for(lock, pause_, asked);
  pause_ = std::min(2 * pause_, kPauseMax);
}

void MpiThread::Loop() {
  ::prctl(PR_SET_TIMERSLACK, kTimerSlackNanoseconds, 0, 0, 0);
  std::vector<MpiTransfers*> fresh;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (abort_code_ != 0) MPI_Abort(MPI_COMM_WORLD, abort_code_);
    if (called_ != nullptr) {
      const std::shared_ptr<Called> called = std::exchange(called_, nullptr);
      lock.unlock();
      absl::Status status = called->call();
      lock.lock();
      called->status = std::move(status);
      called->ended = true;
      changed_.notify_all();
      continue;
    }
    if (!halted_.ok()) {
      EndAllLocked();
      changed_.notify_all();
      wake_.wait(lock);
      continue;
    }
    fresh.swap(submitted_);
    lock.unlock();
    for (MpiTransfers* transfers : fresh) Begin(*transfers);
    const bool progressed = Poll() || !fresh.empty();
    fresh.clear();
    lock.lock();
    Pause(lock, progressed);
  }
}

}  // namespace paceline
