#include "worker/agent/outbox.h"

#include <gtest/gtest.h>

namespace paceline {
namespace {

v1::GenerationKey Key(std::uint64_t generation, const std::string& run_id = "run") {
  v1::GenerationKey key;
  key.set_run_id(run_id);
  key.set_generation(generation);
  return key;
}

v1::AgentMessage Ready(std::uint64_t generation, int rank) {
  v1::AgentMessage message;
  *message.mutable_ready()->mutable_key() = Key(generation);
  message.mutable_ready()->set_rank(rank);
  return message;
}

v1::AgentMessage Part(std::uint64_t generation, int rank, std::int64_t step) {
  v1::AgentMessage message;
  *message.mutable_checkpoint_part()->mutable_key() = Key(generation);
  message.mutable_checkpoint_part()->set_rank(rank);
  message.mutable_checkpoint_part()->mutable_position()->set_step(step);
  return message;
}

v1::AgentMessage Finished(std::uint64_t generation, int rank) {
  v1::AgentMessage message;
  *message.mutable_finished()->mutable_key() = Key(generation);
  message.mutable_finished()->set_rank(rank);
  return message;
}

v1::AgentMessage Gone(std::uint64_t generation) {
  v1::AgentMessage message;
  *message.mutable_gone()->mutable_key() = Key(generation);
  return message;
}

v1::AgentMessage AskWindows(std::uint64_t generation, std::int64_t until_step) {
  v1::AgentMessage message;
  *message.mutable_window_request()->mutable_key() = Key(generation);
  message.mutable_window_request()->set_until_step(until_step);
  return message;
}

TEST(OutboxTest, KeepsOneMessageOfARankAndKind) {
  Outbox outbox;
  outbox.Add(Ready(1, 0));
  outbox.Add(Ready(1, 0));
  outbox.Add(Ready(1, 1));
  EXPECT_EQ(outbox.Pending().size(), 2u);
}

TEST(OutboxTest, HeartbeatsAreNotKept) {
  Outbox outbox;
  v1::AgentMessage heartbeat;
  heartbeat.mutable_heartbeat()->set_sequence(1);
  outbox.Add(heartbeat);
  EXPECT_TRUE(outbox.Pending().empty());
}

TEST(OutboxTest, CommitDropsPartsOfThatStepAndEarlierOnly) {
  Outbox outbox;
  outbox.Add(Part(1, 0, 50));
  outbox.Add(Part(1, 0, 100));
  outbox.Add(Part(1, 1, 150));
  outbox.OnCommitted("run", 100);
  ASSERT_EQ(outbox.Pending().size(), 1u);
  EXPECT_EQ(outbox.Pending()[0].checkpoint_part().position().step(), 150);
  outbox.OnCommitted("another", 150);
  EXPECT_EQ(outbox.Pending().size(), 1u);
}

TEST(OutboxTest, PartsOfARankAreBoundedAndTheOldestGo) {
  Outbox outbox;
  for (std::int64_t step = 1; step <= 100; ++step) outbox.Add(Part(1, 0, step));
  outbox.Add(Part(1, 1, 7));
  const auto pending = outbox.Pending();
  ASSERT_EQ(pending.size(), Outbox::kPartsPerRankMax + 1);
  EXPECT_EQ(pending.front().checkpoint_part().position().step(),
            static_cast<std::int64_t>(101 - Outbox::kPartsPerRankMax));
}

TEST(OutboxTest, GoneGenerationsAreBounded) {
  Outbox outbox;
  for (std::uint64_t generation = 1; generation <= 100; ++generation) outbox.Add(Gone(generation));
  const auto pending = outbox.Pending();
  ASSERT_EQ(pending.size(), Outbox::kGoneMax);
  EXPECT_EQ(pending.back().gone().key().generation(), 100u);
}

TEST(OutboxTest, PartsComeBeforeTheEndOfTheirRank) {
  Outbox outbox;
  outbox.Add(Finished(1, 0));
  outbox.Add(Part(1, 0, 100));
  outbox.Add(Ready(1, 0));
  const auto pending = outbox.Pending();
  ASSERT_EQ(pending.size(), 3u);
  EXPECT_TRUE(pending[0].has_ready());
  EXPECT_TRUE(pending[1].has_checkpoint_part());
  EXPECT_TRUE(pending[2].has_finished());
}

TEST(OutboxTest, GrantThatCoversTheRequestDropsIt) {
  Outbox outbox;
  outbox.Add(AskWindows(1, 40));
  outbox.OnGranted(Key(1), 30);
  EXPECT_EQ(outbox.Pending().size(), 1u);
  outbox.OnGranted(Key(2), 40);
  EXPECT_EQ(outbox.Pending().size(), 1u);
  outbox.OnGranted(Key(1), 40);
  EXPECT_TRUE(outbox.Pending().empty());
}

TEST(OutboxTest, EndOfAGenerationLeavesItsGoneAlone) {
  Outbox outbox;
  outbox.Add(Ready(1, 0));
  outbox.Add(Part(1, 0, 10));
  outbox.Add(Finished(1, 0));
  outbox.Add(Gone(1));
  outbox.Add(Ready(2, 0));
  outbox.OnEnded(Key(1));
  const auto pending = outbox.Pending();
  ASSERT_EQ(pending.size(), 2u);
  EXPECT_EQ(pending[0].ready().key().generation(), 2u);
  EXPECT_TRUE(pending[1].has_gone());
}

TEST(OutboxTest, StartOfANewerGenerationForgetsTheOlder) {
  Outbox outbox;
  outbox.Add(Gone(1));
  outbox.Add(Ready(1, 0));
  outbox.OnStarted(Key(2));
  EXPECT_TRUE(outbox.Pending().empty());
}

}  // namespace
}  // namespace paceline
