// The collectives over Open MPI, each rank a process: started by mpirun. One rank's failure is the
// job's. A failure ends MPI in its process, so each test of one is a job of its own, which must end
// with kFailedAsItShould.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "tests/support/collective_checks.h"
#include "worker/collectives/exchange_communicator.h"
#include "worker/collectives/gloo/gloo_communicator.h"
#include "worker/collectives/mpi/mpi_job.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr int kFailedAsItShould = 17;

std::unique_ptr<MpiJob> job;  // of the process; main begins and ends it

CommunicatorOptions Options(int rank, milliseconds timeout) {
  CommunicatorOptions options;
  options.rank = rank;
  options.size = job->size();
  options.operation_timeout = timeout;
  return options;
}

std::unique_ptr<Communicator> Connect(int rank, milliseconds timeout = std::chrono::seconds(60)) {
  const CommunicatorOptions options = Options(rank, timeout);
  auto mesh = job->Connect(options);
  if (!mesh.ok()) {
    ADD_FAILURE() << mesh.status();
    return nullptr;
  }
  return MakeExchangeCommunicator(options, *std::move(mesh));
}

TEST(MpiTest, RanksOfOneMachineShareAHost) {
  EXPECT_EQ(job->hosts(), std::vector<int>(static_cast<std::size_t>(job->size()), 0));
  const auto texts = job->AllGather(std::string(static_cast<std::size_t>(job->rank()), 'x'));
  ASSERT_TRUE(texts.ok()) << texts.status();
  ASSERT_EQ(std::ssize(*texts), job->size());
  for (int rank = 0; rank < job->size(); ++rank) {
    EXPECT_EQ(std::ssize((*texts)[static_cast<std::size_t>(rank)]), rank);
  }
}

// The plan may number the ranks otherwise than mpirun has.
TEST(MpiTest, OperationsAreExactInThePlansOrderOfRanks) {
  const auto communicator = Connect(job->size() - 1 - job->rank());
  ASSERT_NE(communicator, nullptr);
  EXPECT_FALSE(communicator->abortable());
  CheckOperations(*communicator);
  EXPECT_GT(communicator->progress().entered, 0u);
  EXPECT_EQ(communicator->progress().entered, communicator->progress().left);
}

// Groups of three, of one and of two ranks, whose operations run at the same time on two streams.
TEST(MpiTest, GroupsOfAGroupAreExactAndIndependent) {
  const auto world = Connect(job->rank());
  ASSERT_NE(world, nullptr);
  const int rank = world->rank();
  const int last = world->size() - 1;
  std::vector<int> first_ones;
  for (int one = 0; one < last; ++one) first_ones.push_back(one);
  const auto group = world->Split(rank == last ? std::vector<int>{last} : first_ones);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->size(), rank == last ? 1 : last);
  CheckOperations(**group);

  const int even = rank - rank % 2;
  const auto pair = world->Split({even, even + 1});
  ASSERT_TRUE(pair.ok()) << pair.status();
  Stream stream(Stream::Mode::kThread, "pair");
  constexpr std::size_t kCount = 300'001;
  std::vector<double> sums = Values<double>((*pair)->rank(), kCount);
  (*pair)->AllReduceSum(stream, "pair", sums.data(), kCount, DataType::kFloat64);
  CheckReductions(*world);
  ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
  EXPECT_TRUE(SameBits(sums, SumOfRanks<double>(2, kCount)));
}

TEST(MpiTest, LargeAllReduceHasTheBitsOfGloo) {
  const auto mpi = Connect(job->rank());
  ASSERT_NE(mpi, nullptr);
  auto gloo = MakeGlooCommunicator(Options(job->rank(), std::chrono::seconds(60)),
                                   [](const std::string& own) { return job->AllGather(own); });
  ASSERT_TRUE(gloo.ok()) << gloo.status();
  Stream stream(Stream::Mode::kInline, "test");
  constexpr std::size_t kCount = 1'500'001;
  std::vector<std::vector<float>> results;
  for (Communicator* communicator : {mpi.get(), gloo->get()}) {
    results.push_back(Values<float>(communicator->rank(), kCount));
    communicator->AllReduceSum(stream, "large", results.back().data(), kCount, DataType::kFloat32);
    ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
  }
  EXPECT_TRUE(SameBits(results[0], results[1]));
}

// A rank that waits leaves its core to those that compute.
TEST(MpiTest, WaitingCostsLittleOfACore) {
  const auto communicator = Connect(job->rank());
  ASSERT_NE(communicator, nullptr);
  Stream stream(Stream::Mode::kInline, "test");
  communicator->Barrier(stream, "together");
  ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
  const std::clock_t before = std::clock();
  const auto begin = std::chrono::steady_clock::now();
  if (job->rank() == 0) {
    while (std::chrono::steady_clock::now() - begin < std::chrono::seconds(1)) {
      EXPECT_FALSE(Values<double>(0, 1000).empty());  // it computes
    }
  }
  communicator->Barrier(stream, "waits for rank 0");
  ASSERT_TRUE(stream.Synchronize().ok()) << stream.status();
  const double seconds = SecondsBetween(begin, std::chrono::steady_clock::now());
  const double cpu = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  if (job->rank() != 0) {
    EXPECT_GT(seconds, 0.5);
    EXPECT_LT(cpu, 0.2 * seconds);
  }
}

// --- what ends MPI in the process ---

TEST(MpiFailureTest, TimeoutNamesOperationOwnRankAndTheSilentPeer) {
  const auto communicator = Connect(job->rank(), milliseconds(500));
  ASSERT_NE(communicator, nullptr);
  if (communicator->rank() == 1) return;
  Stream stream(Stream::Mode::kInline, "test");
  std::vector<float> values(1'000'000, 1.0f);
  communicator->AllReduceSum(stream, "gradients", values.data(), values.size(), DataType::kFloat32);
  const std::string message(stream.status().message());
  EXPECT_EQ(stream.status().code(), absl::StatusCode::kDeadlineExceeded) << stream.status();
  EXPECT_THAT(message, HasSubstr("rank " + std::to_string(job->rank()) + ": all-reduce"));
  EXPECT_THAT(message, HasSubstr("\"gradients\""));
  EXPECT_THAT(message, HasSubstr("500 ms"));
  EXPECT_THAT(message, HasSubstr("not heard from rank 1"));
  Stream after(Stream::Mode::kInline, "after");
  communicator->Barrier(after, "after");
  EXPECT_EQ(after.status().code(), absl::StatusCode::kDeadlineExceeded) << after.status();
}

TEST(MpiFailureTest, AbortWakesTheWaitersOfEveryGroupWithItsReason) {
  const auto first = Connect(job->rank());
  const auto second = Connect(job->rank());
  ASSERT_TRUE(first != nullptr && second != nullptr);
  if (job->rank() == 1) return;  // it stays silent
  Stream streams[2] = {{Stream::Mode::kThread, "first"}, {Stream::Mode::kThread, "second"}};
  std::vector<float> values[2] = {std::vector<float>(1'000'000), std::vector<float>(1'000'000)};
  Communicator* communicators[2] = {first.get(), second.get()};
  for (int i = 0; i < 2; ++i) {
    communicators[i]->AllReduceSum(streams[i], "gradients", values[i].data(), values[i].size(),
                                   DataType::kFloat32);
    while (communicators[i]->progress().entered == 0) std::this_thread::yield();
  }
  const auto begin = std::chrono::steady_clock::now();
  first->Abort("the generation has ended");
  for (Stream& stream : streams) {
    EXPECT_EQ(stream.Synchronize(), absl::AbortedError("the generation has ended"));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(1000));
}

}  // namespace

absl::Status RunUnderMpi() {
  ASSIGN_OR_RETURN(job, LoadMpi());
  // Results go over Gloo, because MPI may have failed as it should.
  ASSIGN_OR_RETURN(
      const auto results,
      MakeGlooCommunicator(Options(job->rank(), std::chrono::seconds(60)),
                           [](const std::string& own) { return job->AllGather(own); }));
  std::int32_t failed = RUN_ALL_TESTS();
  Stream stream(Stream::Mode::kInline, "results");
  results->AllReduceSum(stream, "failed", &failed, 1, DataType::kInt32);
  results->Barrier(stream, "end");
  RETURN_IF_ERROR(stream.Synchronize());
  if (failed != 0) return absl::InternalError("a rank has failed");
  if (testing::GTEST_FLAG(filter).starts_with("MpiFailureTest")) job->Abort(kFailedAsItShould);
  return job->Finalize();
}

}  // namespace paceline

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const absl::Status status = paceline::RunUnderMpi();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
