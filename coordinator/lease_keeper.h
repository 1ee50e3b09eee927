// Renews a coordinator's lease while it leads, looks whether it still does, and writes its
// coordinator.json anew where a former coordinator's last word has replaced it.
// Invariant: `on_replaced` is called once, when a newer epoch has been seen; after it nothing is
// renewed. A state folder that does not answer costs the lease and nothing else: whether another
// coordinator has taken it the next answer tells.
// Threading: a thread of its own; the destructor joins it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "common/status.h"
#include "coordinator/storage/epoch_fence.h"
#include "coordinator/storage/lease.h"

namespace paceline {

class LeaseKeeper {
 public:
  struct Options {
    std::string state_dir;
    storage::EpochFence fence;
    storage::Lease lease;  // its file is there
    std::chrono::milliseconds interval;
    std::function<void(const absl::Status&)> on_replaced;
    std::function<void()> on_renewed;
    std::function<void()> tend;  // once a lease: puts right what a former coordinator has touched
  };
  explicit LeaseKeeper(Options options);
  ~LeaseKeeper();

  // Renews no more. A coordinator that ends in order releases the lease, so that the next need not
  // wait for its end.
  void Stop(bool release);

 private:
  void Run();
  // False: replaced.
  bool RenewOnce();
  // Once for each kind of trouble, not at every renewal.
  void Complain(const absl::Status& status);

  const Options options_;
  std::string trouble_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace paceline
