// Durable state to its snapshot and back (state.h).
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/state.h"

namespace paceline::core {
namespace {

v1::SnapshotRun RunToSnapshot(const Run& run) {
  v1::SnapshotRun out;
  *out.mutable_request() = run.request;
  out.set_state(run.state);
  out.set_reason(run.reason);
  out.set_generation(run.generation.value());
  out.set_generation_open(run.generation_open);
  *out.mutable_plan() = run.plan;
  out.mutable_windows()->Add(run.windows.begin(), run.windows.end());
  for (const Checkpoint& checkpoint : run.checkpoints) {
    v1::SnapshotCheckpoint& to = *out.add_checkpoints();
    *to.mutable_position() = checkpoint.position;
    to.set_folder(checkpoint.folder);
    to.set_manifest_digest(checkpoint.manifest_digest);
    to.set_ledger_digest(checkpoint.ledger_digest);
    to.set_generation(checkpoint.generation.value());
    to.set_tokens(checkpoint.tokens);
  }
  out.set_cost(run.cost);
  *out.mutable_step() = run.step;
  *out.mutable_eval() = run.eval;
  out.set_tokens(run.tokens);
  out.set_lost_steps(run.lost_steps);
  out.set_lost_tokens(run.lost_tokens);
  out.set_recoveries(run.recoveries);
  *out.mutable_failure() = run.failure;
  out.set_retryable(run.retryable);
  out.set_stop_reason(run.stop_reason);
  out.mutable_request_ids()->Add(run.request_ids.begin(), run.request_ids.end());
  out.set_ledger_digest(run.ledger_digest);
  out.set_first_generation(run.first_generation.value());
  out.mutable_discarded()->Add(run.discarded.begin(), run.discarded.end());
  out.set_ended_epoch(run.ended_epoch.value());
  out.set_last_step(run.last_step);
  out.set_restarts(run.restarts);
  out.set_in_vain(run.in_vain);
  out.set_highest_step(run.highest_step);
  out.set_move_reason(run.move_reason);
  out.set_move_at_checkpoint(run.move_at_checkpoint);
  out.set_plan_index(run.plan_index);
  out.set_phase(run.phases.phase());
  out.set_phase_since_ms(run.phases.since_ms());
  for (const auto& [phase, ms] : run.phases.over()) {
    v1::PhaseTime& time = *out.add_phases();
    time.set_phase(phase);
    time.set_ms(ms);
  }
  return out;
}

absl::StatusOr<Run> RunFromSnapshot(const v1::SnapshotRun& from) {
  Run run;
  run.request = from.request();
  ASSIGN_OR_RETURN(run.file,
                   ParseRunFile(from.request().run_file(),
                                absl::StrCat(from.request().run_id(), "/run.toml"), "/", {}));
  run.state = from.state();
  run.reason = from.reason();
  run.generation = Generation{from.generation()};
  run.generation_open = from.generation_open();
  run.plan = from.plan();
  run.windows.assign(from.windows().begin(), from.windows().end());
  for (const v1::SnapshotCheckpoint& checkpoint : from.checkpoints()) {
    run.checkpoints.push_back({.position = checkpoint.position(),
                               .folder = checkpoint.folder(),
                               .manifest_digest = checkpoint.manifest_digest(),
                               .ledger_digest = checkpoint.ledger_digest(),
                               .generation = Generation{checkpoint.generation()},
                               .tokens = checkpoint.tokens()});
  }
  run.cost = from.cost();
  run.step = from.step();
  run.eval = from.eval();
  run.tokens = from.tokens();
  run.lost_steps = from.lost_steps();
  run.lost_tokens = from.lost_tokens();
  run.recoveries = from.recoveries();
  run.failure = from.failure();
  run.retryable = from.retryable();
  run.stop_reason = from.stop_reason();
  run.request_ids.assign(from.request_ids().begin(), from.request_ids().end());
  run.ledger_digest = from.ledger_digest();
  run.first_generation = Generation{from.first_generation()};
  run.discarded.assign(from.discarded().begin(), from.discarded().end());
  run.ended_epoch = Epoch{from.ended_epoch()};
  run.last_step = from.last_step();
  run.restarts = from.restarts();
  run.in_vain = from.in_vain();
  run.highest_step = from.highest_step();
  run.move_reason = from.move_reason();
  run.move_at_checkpoint = from.move_at_checkpoint();
  run.plan_index = from.plan_index();
  std::map<v1::RunPhase, std::int64_t> phases;
  for (const v1::PhaseTime& time : from.phases()) phases[time.phase()] += time.ms();
  run.phases = PhaseClock(from.phase(), from.phase_since_ms(), std::move(phases));
  return run;
}

}  // namespace

v1::StateSnapshot State::ToSnapshot() const {
  v1::StateSnapshot out;
  out.set_index(index);
  out.set_at_ms(at_ms);
  out.set_epoch(epoch.value());
  out.set_next_node_id(next_node_id);
  for (const auto& [id, node] : nodes) {
    v1::SnapshotNode& to = *out.add_nodes();
    to.set_node_id(id.value());
    *to.mutable_node() = node.info;
    to.set_alive(node.alive);
    to.set_charged_until_ms(node.charged_until_ms);
    to.set_drained(node.drained);
    to.set_quarantined(node.quarantined);
    to.set_drain_reason(node.drain_reason);
    to.mutable_failures_ms()->Add(node.failures_ms.begin(), node.failures_ms.end());
    to.set_joined_index(node.joined_index);
    to.mutable_request_ids()->Add(node.request_ids.begin(), node.request_ids.end());
  }
  for (const auto& [id, run] : runs) *out.add_runs() = RunToSnapshot(run);
  return out;
}

absl::StatusOr<State> State::FromSnapshot(const v1::StateSnapshot& snapshot) {
  State state;
  state.index = snapshot.index();
  state.at_ms = snapshot.at_ms();
  state.epoch = Epoch{snapshot.epoch()};
  state.next_node_id = snapshot.next_node_id();
  for (const v1::SnapshotRun& from : snapshot.runs()) {
    absl::StatusOr<Run> run = RunFromSnapshot(from);
    if (!run.ok()) {
      return absl::DataLossError(absl::StrCat("snapshot of fact ", snapshot.index(), ": run ",
                                              from.request().run_id(), ": ",
                                              run.status().message()));
    }
    state.runs.emplace(from.request().run_id(), *std::move(run));
  }
  for (const v1::SnapshotNode& from : snapshot.nodes()) {
    Node& node = state.nodes[NodeId{from.node_id()}];
    node.id = NodeId{from.node_id()};
    node.info = from.node();
    node.alive = from.alive();
    node.charged_until_ms = from.charged_until_ms();
    node.drained = from.drained();
    node.quarantined = from.quarantined();
    node.drain_reason = from.drain_reason();
    node.failures_ms.assign(from.failures_ms().begin(), from.failures_ms().end());
    node.joined_index = from.joined_index();
    node.request_ids.assign(from.request_ids().begin(), from.request_ids().end());
    state.node_by_name[from.node().name()] = node.id;
    if (node.alive) state.SetPayer(node, state.PayerAtRest(node));
  }
  // Who pays is not written down: it follows from the open generations.
  for (const auto& [id, run] : state.runs) {
    if (!run.generation_open) continue;
    for (const v1::RankPlacement& placement : run.plan.placements()) {
      const auto node = state.nodes.find(NodeId{placement.node_id()});
      if (node != state.nodes.end() && node->second.alive) state.SetPayer(node->second, id);
    }
  }
  return state;
}

}  // namespace paceline::core
