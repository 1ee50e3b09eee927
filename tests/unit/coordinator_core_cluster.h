// A core with hands on it: tests say what agents and users say, move the clock, and look at what
// was decided. Replaying the facts is compared with the live state after every decision.
// Threading: one thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core.h"

namespace paceline::core {

// A run of `nodes` x `slots` ranks; `checkpoint` is that section's keys.
inline std::string RunFileText(int nodes, int slots, std::int64_t steps,
                               const std::string& checkpoint = "interval_steps = 10\nkeep = 2",
                               const std::string& launch = "") {
  return absl::StrCat(
      "[run]\nname = \"unit\"\nmember = \"uni-a\"\nproject = \"demo\"\nseed = 7\n"
      "[model]\nvocab_size = 256\nhidden_size = 32\nnum_hidden_layers = 1\n"
      "num_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 16\nintermediate_size = 64\n"
      "[data]\ntrain = \"/corpus\"\n"
      "[train]\nsequence_length = 16\nmicro_batch_size = 1\nlearning_rate = 1e-3\n"
      "global_batch_size = ",
      nodes * slots, "\nsteps = ", steps, "\n[checkpoint]\n", checkpoint,
      "\n[launch]\nnodes = ", nodes, "\nslots_per_node = ", slots, "\n", launch,
      "\n[rates]\nslot_hour = 3.6\n");
}

inline v1::SubmitRunRequest SubmissionOf(const std::string& request_id,
                                         const std::string& run_file) {
  v1::SubmitRunRequest request;
  request.set_request_id(request_id);
  request.set_run_id("run");
  request.set_run_file(run_file);
  request.set_run_dir("/runs/run");
  request.set_corpus_digest("c0ffee");
  request.set_corpus_samples(1000);
  return request;
}

class Cluster {
 public:
  Cluster() { Restart(); }

  // The coordinator dies and comes back from the facts that are durable.
  void Restart() {
    core_ = std::make_unique<Core>(CoreOptions{.epoch = Epoch{++epoch_}});
    for (const v1::Fact& fact : facts) ASSERT_TRUE(core_->Evolve(fact).ok());
    Take(core_->Open(now_));
  }

  void Advance(std::chrono::milliseconds by) {
    now_.steady += by;
    now_.wall_ms += by.count();
  }
  void JumpWallClock(std::chrono::milliseconds by) { now_.wall_ms += by.count(); }
  // Moves on in small steps, in which every node sends heartbeats and due ticks are taken.
  void Run(std::chrono::milliseconds by, const std::vector<int>& nodes) {
    for (std::chrono::milliseconds done{0}; done < by; done += std::chrono::milliseconds(500)) {
      Advance(std::chrono::milliseconds(500));
      for (const int node : nodes) Heartbeat(node);
      Tick();
    }
  }
  void Tick() { Decide(core::Tick{}); }

  void Register(int node, std::uint64_t incarnation = 1, int slots = 2,
                const std::string& run_id = "",
                const std::vector<v1::GenerationGone>& left_behind = {}) {
    incarnations_[node] = incarnation;
    sessions_[node] = SessionId{next_session_++};
    v1::AgentMessage message;
    v1::RegisterNode& info = *message.mutable_register_();
    info.set_name(absl::StrCat("node-", node));
    info.set_incarnation(incarnation);
    info.set_host("here");
    info.set_slots(slots);
    info.set_metrics_address(absl::StrCat("127.0.0.1:", 9000 + node));
    info.set_protocol_version(1);
    info.set_snapshot_address(absl::StrCat("127.0.0.1:", 7000 + node));
    info.set_run_id(run_id);
    info.mutable_left_behind()->Add(left_behind.begin(), left_behind.end());
    Say(node, message);
  }
  void Close(int node) { Decide(SessionClosed{sessions_.at(node)}); }
  void Say(int node, v1::AgentMessage message) {
    message.set_incarnation(incarnations_.at(node));
    Decide(AgentSaid{sessions_.at(node), std::move(message)});
  }
  void Heartbeat(int node) {
    v1::AgentMessage message;
    message.mutable_heartbeat();
    Say(node, message);
  }

  void Submit(const v1::SubmitRunRequest& request) {
    Decide(SubmitRunCalled{CallId{next_call_++}, request});
  }
  void Stop(const std::string& reason) {
    v1::StopRunRequest request;
    request.set_request_id("stop");
    request.set_run_id("run");
    request.set_reason(reason);
    Decide(StopRunCalled{CallId{next_call_++}, request});
  }

  v1::GenerationKey Key(std::uint64_t generation = 0) const {
    v1::GenerationKey key;
    key.set_run_id("run");
    key.set_generation(generation == 0 ? Status().generation() : generation);
    return key;
  }
  void Ready(int node, int rank) {
    v1::AgentMessage message;
    *message.mutable_ready()->mutable_key() = Key();
    message.mutable_ready()->set_rank(rank);
    message.mutable_ready()->set_address(absl::StrCat("address-", rank));
    Say(node, message);
  }
  // A heartbeat that tells where the rank is; of rank 0 with its step's record.
  void Progress(int node, int rank, std::int64_t step, double step_seconds = 0.2) {
    v1::AgentMessage message;
    v1::NodeProgress& progress = *message.mutable_heartbeat()->add_progress();
    *progress.mutable_key() = Key();
    progress.add_ranks()->set_rank(rank);
    progress.mutable_ranks(0)->set_step(step);
    if (rank == 0) {
      progress.mutable_step()->set_step(step);
      progress.mutable_step()->set_loss(2.5);
      progress.mutable_step()->set_step_seconds(step_seconds);
    }
    Say(node, message);
  }
  v1::CheckpointPart PartOf(int rank, std::int64_t step, int world) const {
    v1::CheckpointPart part;
    *part.mutable_key() = Key();
    part.set_rank(rank);
    part.mutable_position()->set_step(step);
    part.mutable_position()->set_sample(step * world);
    part.mutable_position()->set_seed(7);
    part.mutable_position()->set_corpus_digest("c0ffee");
    part.set_file(absl::StrCat("rank-", rank, ".safetensors"));
    part.set_bytes(100);
    return part;
  }
  void Part(int node, const v1::CheckpointPart& part) {
    v1::AgentMessage message;
    *message.mutable_checkpoint_part() = part;
    Say(node, message);
  }
  void ManifestDone(std::int64_t step, absl::Status status = absl::OkStatus()) {
    Decide(ManifestWritten{Key(), step, std::move(status)});
  }
  void Finish(int node, int rank, std::int64_t step, bool stopped = false) {
    v1::AgentMessage message;
    *message.mutable_finished()->mutable_key() = Key();
    message.mutable_finished()->set_rank(rank);
    message.mutable_finished()->set_step(step);
    message.mutable_finished()->set_stopped(stopped);
    Say(node, message);
  }
  void Fail(int node, const v1::RankFailed& failed) {
    v1::AgentMessage message;
    *message.mutable_failed() = failed;
    Say(node, message);
  }
  // `held`: steps by rank.
  void Gone(int node, std::uint64_t generation, const std::map<int, std::int64_t>& held = {}) {
    v1::AgentMessage message;
    *message.mutable_gone()->mutable_key() = Key(generation);
    for (const auto& [rank, step] : held) {
      v1::HeldState& state = *message.mutable_gone()->add_held();
      state.set_rank(rank);
      state.set_step(step);
    }
    Say(node, message);
  }

  // Two nodes of two slots, four ranks, all ready.
  void StartFourRanks(std::int64_t steps = 100,
                      const std::string& checkpoint = "interval_steps = 10\nkeep = 2",
                      const std::string& launch = "") {
    Submit(SubmissionOf("submit", RunFileText(2, 2, steps, checkpoint, launch)));
    Register(0, 1, 2, "run");
    Register(1, 1, 2, "run");
    for (int rank = 0; rank < 4; ++rank) Ready(rank / 2, rank);
  }
  void Checkpoint(std::int64_t step) {
    for (int rank = 0; rank < 4; ++rank) Part(rank / 2, PartOf(rank, step, 4));
    ManifestDone(step);
  }

  void Decide(const Event& event) { Take(core_->Decide(event, now_)); }

  v1::RunStatus Status() const {
    const auto status = core_->GetRun("run", now_);
    return status.ok() ? *status : v1::RunStatus();
  }
  const paceline::core::Run& TheRun() const { return core_->state().runs.at("run"); }
  Core& core() { return *core_; }
  Now now() const { return now_; }

  // Effects of the last decision of one kind.
  template <typename T>
  std::vector<T> Last() const {
    std::vector<T> found;
    for (const Effect& effect : last.effects) {
      if (const T* one = std::get_if<T>(&effect)) found.push_back(*one);
    }
    return found;
  }
  // Messages of the last decision to `node`, of one kind.
  std::vector<v1::CoordinatorMessage> Sent(int node, v1::CoordinatorMessage::BodyCase kind) const {
    std::vector<v1::CoordinatorMessage> found;
    for (const SendToAgent& sent : Last<SendToAgent>()) {
      if (sent.session == sessions_.at(node) && sent.message.body_case() == kind) {
        found.push_back(sent.message);
      }
    }
    return found;
  }
  std::vector<v1::Fact> Facts(v1::Fact::BodyCase kind) const {
    std::vector<v1::Fact> found;
    for (const v1::Fact& fact : facts) {
      if (fact.body_case() == kind) found.push_back(fact);
    }
    return found;
  }

  std::vector<v1::Fact> facts;  // durable
  Decision last;

 private:
  void Take(Decision decision) {
    for (const v1::Fact& fact : decision.facts) {
      facts.push_back(fact);
      ASSERT_TRUE(replay_.Evolve(fact).ok());
    }
    ASSERT_EQ(core_->Snapshot().SerializeAsString(), replay_.ToSnapshot().SerializeAsString());
    last = std::move(decision);
  }

  std::unique_ptr<Core> core_;
  State replay_;
  Now now_{SteadyTime(std::chrono::hours(1)), 1'700'000'000'000};
  std::uint64_t epoch_ = 0;
  std::uint64_t next_session_ = 1;
  std::uint64_t next_call_ = 1;
  std::map<int, std::uint64_t> incarnations_;
  std::map<int, SessionId> sessions_;
};

// What `rank` of the cluster's generation says when it cannot go on, its process alive.
inline v1::RankFailed FailureOf(const Cluster& cluster, int rank, absl::StatusCode code,
                                const std::string& error) {
  v1::RankFailed failed;
  *failed.mutable_key() = cluster.Key();
  failed.set_rank(rank);
  failed.set_status_code(static_cast<int>(code));
  failed.set_error(error);
  failed.set_exit_code(-1);
  return failed;
}

}  // namespace paceline::core
