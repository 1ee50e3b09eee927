#include "launch/cli/link_rates.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/gloo/gloo_communicator.h"

namespace paceline::cli {
namespace {

constexpr int kRanks = 2;
constexpr int kRounds = 41;
constexpr std::size_t kElements = std::size_t{1} << 17;  // to each rank: 512 KiB in float32
constexpr std::chrono::seconds kTimeout{10};

// Where the two threads tell each other their addresses, or that there will be none.
class Addresses {
 public:
  absl::StatusOr<std::vector<std::string>> Exchange(int rank, const std::string& own) {
    std::unique_lock lock(mutex_);
    addresses_[static_cast<std::size_t>(rank)] = own;
    ++told_;
    changed_.notify_all();
    const bool done =
        changed_.wait_for(lock, kTimeout, [this] { return told_ == kRanks || !failure_.ok(); });
    RETURN_IF_ERROR(failure_);
    if (done) return addresses_;
    return absl::DeadlineExceededError("measuring messages: the other thread did not come");
  }

  // The first failure is the one that counts.
  void Fail(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = status;
    changed_.notify_all();
  }

  // After both threads have ended.
  const absl::Status& failure() const { return failure_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int told_ = 0;
  absl::Status failure_;
  std::vector<std::string> addresses_{kRanks};
};

// The median time of what `enqueue` puts on a stream, kRounds times on every rank.
template <typename Enqueue>
double MedianSeconds(Stream& stream, Enqueue enqueue) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds;
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point start = Clock::now();
    enqueue();
    stream.Synchronize().IgnoreError();  // kept: the caller asks once
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return seconds[kRounds / 2];
}

// From the times of one element and of all.
planning::LinkRate RateOf(double small, double large, double bytes) {
  return {small, bytes / std::max(large - small, 0.01 * large)};
}

absl::StatusOr<LinkRates> MeasureAsRank(int rank, Addresses& addresses) {
  CommunicatorOptions options;
  options.rank = rank;
  options.size = kRanks;
  options.connect_timeout = options.operation_timeout = kTimeout;
  ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> communicator,
                   MakeGlooCommunicator(options, [&](const std::string& own) {
                     return addresses.Exchange(rank, own);
                   }));
  Stream stream(Stream::Mode::kThread, "links");
  std::vector<double> sums(kRanks * kElements, 1.0);
  std::vector<float> values(kRanks * kElements, 1.0f);
  std::vector<float> arrived(kRanks * kElements);
  const auto reduce = [&](std::size_t count) {
    communicator->ReduceScatterSum(stream, "reduction", sums.data(),
                                   sums.data() + static_cast<std::size_t>(rank) * count, count,
                                   DataType::kFloat64);
    communicator->AllGather(stream, "reduction", values.data(), arrived.data(), count,
                            DataType::kFloat32);
  };
  std::vector<std::size_t> counts(kRanks);
  std::vector<std::size_t> offsets = {0, kElements};
  const auto exchange = [&](std::size_t count) {
    counts[static_cast<std::size_t>(1 - rank)] = count;
    communicator->AllToAll(stream, "exchange", values.data(), counts.data(), offsets.data(),
                           arrived.data(), counts.data(), offsets.data(), DataType::kFloat32);
  };
  // There and back, from one computing thread to the other, as between stages.
  Stream sending(Stream::Mode::kThread, "links out");
  const auto message = [&](std::size_t count) {
    for (const int sender : {0, 1}) {
      if (sender == rank) {
        communicator->Send(sending, "message", values.data(), count, DataType::kFloat32, 1 - rank);
        sending.Synchronize().IgnoreError();
      } else {
        communicator->Recv(stream, "message", arrived.data(), count, DataType::kFloat32, 1 - rank);
        stream.Synchronize().IgnoreError();
      }
    }
  };
  const auto time = [&](const auto& work, std::size_t count) {
    return MedianSeconds(stream, [&] { work(count); });
  };
  LinkRates rates;
  const double sent = time(message, 1) / 2;
  rates.message =
      RateOf(sent, time(message, kElements) / 2, sizeof(float) * static_cast<double>(kElements));
  const double reduced = time(reduce, 1);
  rates.reduction = RateOf(reduced, time(reduce, kElements),
                           (sizeof(double) + sizeof(float)) * static_cast<double>(kElements));
  const double exchanged = time(exchange, 1);
  rates.exchange =
      RateOf(exchanged, time(exchange, kElements), sizeof(float) * static_cast<double>(kElements));
  RETURN_IF_ERROR(sending.Synchronize());
  RETURN_IF_ERROR(stream.Synchronize());
  return rates;
}

}  // namespace

absl::StatusOr<LinkRates> MeasureLinks(const std::function<void(int rank)>& on_rank) {
  Addresses addresses;
  std::vector<absl::StatusOr<LinkRates>> rates(kRanks, absl::UnknownError("not measured"));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        if (on_rank) on_rank(rank);
        absl::StatusOr<LinkRates>& own = rates[static_cast<std::size_t>(rank)];
        own = MeasureAsRank(rank, addresses);
        if (!own.ok()) addresses.Fail(own.status());
      });
    }
  }
  RETURN_IF_ERROR(addresses.failure());
  return rates[0];
}

}  // namespace paceline::cli
