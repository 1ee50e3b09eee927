// An agent's core with hands on it: tests say what the coordinator, workers and processes say, and
// look at what it does.
// Threading: one thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/protocol.h"
#include "worker/agent/agent_core.h"

namespace paceline {

using namespace std::chrono_literals;

inline v1::GenerationKey Key(std::uint64_t generation) {
  v1::GenerationKey key;
  key.set_run_id("run");
  key.set_generation(generation);
  return key;
}

// Actions of one kind, in order.
template <typename Action>
std::vector<Action> Of(const std::vector<AgentAction>& actions) {
  std::vector<Action> found;
  for (const AgentAction& action : actions) {
    if (const auto* one = std::get_if<Action>(&action)) found.push_back(*one);
  }
  return found;
}

class AgentCoreTest : public ::testing::Test {
 protected:
  AgentCoreTest() : core_("node-0", 2, 77, "/snapshots", {}) { now_.steady = SteadyTime(1h); }

  std::vector<AgentAction> Handle(const AgentEvent& event) { return core_.Handle(event, now_); }
  std::vector<AgentAction> Advance(std::chrono::milliseconds time) {
    now_.steady += time;
    now_.wall_ms += time.count();
    return Handle(Timer{});
  }

  std::vector<AgentAction> Told(v1::CoordinatorMessage message, std::uint64_t epoch = 1) {
    message.set_epoch(epoch);
    return Handle(CoordinatorSaid{std::move(message)});
  }
  std::vector<AgentAction> Register(std::uint64_t epoch = 1) {
    v1::CoordinatorMessage message;
    message.mutable_registered()->set_node_id(5);
    message.mutable_registered()->set_heartbeat_interval_ms(500);
    message.mutable_registered()->set_lease_ms(4000);
    return Told(message, epoch);
  }
  v1::CoordinatorMessage Start(std::uint64_t generation) {
    v1::CoordinatorMessage message;
    v1::StartGeneration& start = *message.mutable_start();
    *start.mutable_key() = Key(generation);
    start.set_run_dir("/runs/run");
    start.set_start_step(10);
    start.set_start_tokens(1000);
    for (int slot = 0; slot < 2; ++slot) {
      v1::RankAssignment& assignment = *start.add_assignments();
      assignment.set_slot(slot);
      assignment.set_rank(slot);
    }
    start.add_windows()->set_end_step(20);
    return message;
  }
  v1::CoordinatorMessage End(std::uint64_t generation) {
    v1::CoordinatorMessage message;
    *message.mutable_end()->mutable_key() = Key(generation);
    message.mutable_end()->set_reason("over");
    return message;
  }

  std::vector<AgentAction> Says(int slot, v1::WorkerMessage message) {
    return Handle(WorkerSaid{slot, sessions_[slot], std::move(message), {}});
  }
  std::vector<AgentAction> Hello(int slot) {
    sessions_[slot] = ++last_session_;
    v1::WorkerMessage message;
    message.mutable_hello()->set_seat(slot);
    message.mutable_hello()->set_protocol_version(kWorkerProtocolVersion);
    return Says(slot, message);
  }
  std::vector<AgentAction> Ends(int slot, ProcessExit exit) {
    Handle(WorkerExited{slot, exit, {"last words"}});
    return Handle(WorkerSessionClosed{slot, sessions_[slot]});
  }
  v1::WorkerMessage Ready(std::uint64_t generation, int rank) {
    v1::WorkerMessage message;
    *message.mutable_ready()->mutable_key() = Key(generation);
    message.mutable_ready()->set_rank(rank);
    return message;
  }
  v1::WorkerMessage Finished(std::uint64_t generation, int rank) {
    v1::WorkerMessage message;
    *message.mutable_finished()->mutable_key() = Key(generation);
    message.mutable_finished()->set_rank(rank);
    return message;
  }
  v1::WorkerMessage Left(std::uint64_t generation, int rank) {
    v1::WorkerMessage message;
    *message.mutable_left()->mutable_key() = Key(generation);
    message.mutable_left()->set_rank(rank);
    return message;
  }
  v1::WorkerMessage Failed(std::uint64_t generation, int rank, const std::string& error) {
    v1::WorkerMessage message;
    *message.mutable_failed()->mutable_key() = Key(generation);
    message.mutable_failed()->set_rank(rank);
    message.mutable_failed()->set_error(error);
    message.mutable_failed()->set_status_code(static_cast<int>(absl::StatusCode::kDataLoss));
    return message;
  }
  v1::WorkerMessage Step(std::int64_t step) {
    v1::WorkerMessage message;
    message.mutable_step()->set_step(step);
    message.mutable_step()->set_loss(1.5);
    message.mutable_step()->set_tokens(100);
    return message;
  }
  // Generation 1 with both of its workers connected.
  void Run() {
    Register();
    Told(Start(1));
    Hello(0);
    Hello(1);
  }
  std::vector<v1::AgentMessage> TellsOf(const std::vector<AgentAction>& actions,
                                        v1::AgentMessage::BodyCase body) {
    std::vector<v1::AgentMessage> found;
    for (const auto& action : Of<TellCoordinator>(actions)) {
      if (action.message.body_case() == body) found.push_back(action.message);
    }
    return found;
  }

  AgentCore core_;
  Now now_;
  std::uint64_t last_session_ = 0;
  std::uint64_t sessions_[4] = {};  // by seat
};

}  // namespace paceline
