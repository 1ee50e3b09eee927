// How often a run's MPI job is started again. An MPI job cannot lose a rank and go on, so its next
// one goes on from the last committed state; but one that fails again and again before it has
// committed anything new is broken, not unlucky.
// Threading: plain value.
#pragma once

#include <cstdint>

namespace paceline {

class MpiRestarts {
 public:
  static constexpr int kMaxWithoutProgress = 3;

  // A job has failed and may be started again? `committed_step`: the run's last; 0: none.
  bool Allow(std::int64_t committed_step) {
    if (committed_step > committed_step_) {
      committed_step_ = committed_step;
      without_progress_ = 0;
    }
    return ++without_progress_ <= kMaxWithoutProgress;
  }
  int without_progress() const { return without_progress_; }

 private:
  std::int64_t committed_step_ = 0;
  int without_progress_ = 0;
};

}  // namespace paceline
