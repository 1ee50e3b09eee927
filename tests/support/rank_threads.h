// Ranks as threads of one process, connected over loopback: collectives without a cluster.
// Threading: RunRanks blocks until every rank's body has returned.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/status.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/gloo/gloo_communicator.h"

namespace paceline {

// Where the ranks of one group publish their addresses.
class AddressBoard {
 public:
  explicit AddressBoard(int size) : addresses_(size) {}

  ExchangeAddresses ForRank(int rank) {
    return [this, rank](const std::string& own) -> absl::StatusOr<std::vector<std::string>> {
      std::unique_lock lock(mutex_);
      addresses_[rank] = own;
      ++published_;
      all_published_.notify_all();
      if (!all_published_.wait_for(lock, std::chrono::seconds(20), [this] {
            return published_ == static_cast<int>(addresses_.size());
          })) {
        return absl::DeadlineExceededError("a rank did not publish its address");
      }
      return addresses_;
    };
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_published_;
  std::vector<std::string> addresses_;
  int published_ = 0;
};

// Which ranks share memory with each other; the others talk over TCP.
enum class Sharing { kAll, kNone, kEvenRanks };

// Connects `size` ranks, in rank order. Empty where a connection failed.
inline std::vector<std::unique_ptr<Communicator>> ConnectRanks(
    int size, std::chrono::milliseconds operation_timeout = std::chrono::seconds(20),
    Sharing sharing = Sharing::kAll) {
  AddressBoard board(size);
  std::vector<std::unique_ptr<Communicator>> communicators(size);
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        CommunicatorOptions options;
        options.rank = rank;
        options.size = size;
        options.operation_timeout = operation_timeout;
        options.shared_memory =
            sharing == Sharing::kAll || (sharing == Sharing::kEvenRanks && rank % 2 == 0);
        auto made = MakeGlooCommunicator(options, board.ForRank(rank));
        if (made.ok()) communicators[rank] = *std::move(made);
      });
    }
  }
  for (const auto& communicator : communicators) {
    if (communicator == nullptr) return {};
  }
  return communicators;
}

// Runs `body` for every rank on a thread of its own.
inline void RunRanks(const std::vector<std::unique_ptr<Communicator>>& communicators,
                     const std::function<void(Communicator&)>& body) {
  std::vector<std::jthread> threads;
  for (const auto& communicator : communicators) {
    threads.emplace_back([&body, &communicator] { body(*communicator); });
  }
}

}  // namespace paceline
