// The one thread of a process that calls MPI: it initialises it, moves the bytes of every mesh, and
// finalises it.
//
// Transfers are posted as MPI_Irecv and MPI_Isend and polled with MPI_Testsome. While any is under
// way the thread polls without a pause for kSpin after the last progress, then in pauses that
// double from kPauseMin to kPauseMax, so that a rank that waits long leaves its core to those that
// compute. What that costs: an operation ends up to kPauseMax later than it could, and a waiting
// rank takes a few percent of a core. While none is under way it calls MPI each kIdlePoll all the
// same: MPI may still have to deliver what was sent.
//
// Invariant: once halted the thread calls nothing of MPI but MPI_Abort, so nothing touches the
// memory of a transfer any more, and every wait has returned.
// Bounded: a mesh has at most one exchange here, and a process has as many meshes as it has groups.
// Threading: every method from any thread.
#pragma once

#include <mpi.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/status.h"

namespace paceline {

// MPI's error as a Status; OK for MPI_SUCCESS.
absl::Status MpiStatus(int error, const char* call);

// The transfers of one exchange. Filled by the mesh; while it is submitted it is the thread's.
struct MpiTransfers {
  struct Transfer {
    bool receives = false;
    int peer = 0;
    void* data = nullptr;
    int bytes = 0;
    bool done = false;
  };
  MPI_Comm communicator = MPI_COMM_NULL;
  int tag = 0;
  std::vector<Transfer> transfers;
  std::function<std::string()> where;  // what they belong to, asked for when they fail

  // The thread's own; kept so that an exchange allocates nothing once they have grown.
  std::vector<MPI_Request> requests;
  std::vector<MPI_Status> statuses;
  std::vector<int> indices;
  bool ended = false;   // guarded by the thread's mutex
  absl::Status status;  // of what has ended
};

class MpiThread {
 public:
  static constexpr std::chrono::microseconds kSpin{20};
  static constexpr std::chrono::microseconds kPauseMin{20};
  static constexpr std::chrono::microseconds kPauseMax{200};
  static constexpr std::chrono::milliseconds kIdlePoll{5};

  // Initialises MPI on a new thread.
  static absl::StatusOr<std::unique_ptr<MpiThread>> Start();
  ~MpiThread();
  MpiThread(const MpiThread&) = delete;
  MpiThread& operator=(const MpiThread&) = delete;

  // Runs `call`, which may block in MPI, on the thread. kDeadlineExceeded: it had not returned at
  // `deadline`; it then may never, and what it refers to must live on.
  absl::Status Call(std::function<absl::Status()> call, SteadyTime deadline);

  // Moves the bytes. kDeadlineExceeded: not before `deadline`; then the thread has been halted and
  // `done` tells which transfers had come to their end. kAborted: it was halted by another.
  absl::Status Run(MpiTransfers& transfers, SteadyTime deadline);

  // Ends all transfers with kAborted: `reason`; nothing is moved any more.
  void Halt(const std::string& reason);

  // MPI_Abort, if the thread is not stuck in MPI; waits for it at most `timeout`.
  void AbortJob(int exit_code, std::chrono::milliseconds timeout);

 private:
  struct Called {
    std::function<absl::Status()> call;
    bool ended = false;
    absl::Status status;
  };

  MpiThread() = default;
  void Loop();
  void Begin(MpiTransfers& transfers);
  void End(MpiTransfers& transfers, absl::Status status);
  void EndAllLocked();
  bool Poll();
  void Pause(std::unique_lock<std::mutex>& lock, bool progressed);

  std::mutex mutex_;
  std::condition_variable wake_;     // the thread
  std::condition_variable changed_;  // those who wait for it
  std::vector<MpiTransfers*> submitted_;
  std::shared_ptr<Called> called_;  // at most one waits
  absl::Status halted_;             // kAborted once it has
  bool stopping_ = false;
  int abort_code_ = 0;  // 0: nobody asked

  std::vector<MpiTransfers*> active_;  // the thread's own
  SteadyTime progress_at_;
  std::chrono::microseconds pause_{0};
  std::jthread thread_;
};

}  // namespace paceline
