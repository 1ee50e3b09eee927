#include "tests/sim/promises.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace paceline::sim {

void Promises::Expect(bool holds, const v1::Fact& fact, const std::string& otherwise) {
  if (!holds) breaches_.push_back(absl::StrCat("fact ", fact.index(), ": ", otherwise));
}

void Promises::OnFact(const v1::Fact& fact) {
  Expect(static_cast<std::int64_t>(fact.index()) == last_index_ + 1, fact, "index out of order");
  last_index_ = static_cast<std::int64_t>(fact.index());
  switch (fact.body_case()) {
    case v1::Fact::kNodeJoined: {
      Membership& node = nodes_[fact.node_joined().node_id()];
      const std::uint64_t incarnation = fact.node_joined().node().incarnation();
      Expect(!node.alive, fact, "a node joined that was there");
      Expect(incarnation >= node.incarnation, fact, "an older incarnation joined");
      node = {true, incarnation, fact.at_ms()};
      heard_ms_[fact.node_joined().node_id()] = fact.at_ms();
      break;
    }
    case v1::Fact::kNodeLeft:
      nodes_[fact.node_left().node_id()].alive = false;
      break;
    case v1::Fact::kGenerationStarted: {
      Lineage& run = runs_[fact.generation_started().key().run_id()];
      const std::int64_t committed = run.committed.empty() ? 0 : run.committed.back();
      Expect(!run.open, fact, "a second generation is open");
      Expect(fact.generation_started().key().generation() == run.generation + 1, fact,
             "generations are not counted one by one");
      Expect(fact.generation_started().start_step() == committed, fact,
             "a generation does not start from the last committed checkpoint");
      Expect(run.granted_until == committed, fact, "windows of an earlier generation are held");
      run.open = true;
      run.generation = fact.generation_started().key().generation();
      run.world = fact.generation_started().placements_size();
      break;
    }
    case v1::Fact::kGenerationEnded: {
      Lineage& run = runs_[fact.generation_ended().key().run_id()];
      Expect(run.open && fact.generation_ended().key().generation() == run.generation, fact,
             "a generation ended that was not open");
      run.open = false;
      break;
    }
    case v1::Fact::kWindowGranted: {
      Lineage& run = runs_[fact.window_granted().key().run_id()];
      const v1::Window& window = fact.window_granted().window();
      Expect(run.open && fact.window_granted().key().generation() == run.generation, fact,
             "a window for a generation that is not open");
      Expect(window.first_step() == run.granted_until && window.end_step() > window.first_step(),
             fact, "windows overlap or leave a gap");
      run.granted_until = window.end_step();
      break;
    }
    case v1::Fact::kWindowsRolledBack: {
      Lineage& run = runs_[fact.windows_rolled_back().key().run_id()];
      Expect(!run.open, fact, "windows rolled back under an open generation");
      run.granted_until = fact.windows_rolled_back().window().first_step();
      break;
    }
    case v1::Fact::kCheckpointCommitted:
      OnCommitted(fact, fact.checkpoint_committed());
      break;
    case v1::Fact::kCheckpointDiscarded:
      OnDiscarded(fact.checkpoint_discarded());
      break;
    case v1::Fact::kChargePosted:
      OnCharge(fact, fact.charge_posted());
      break;
    default:
      break;
  }
}

void Promises::OnCommitted(const v1::Fact& fact, const v1::CheckpointCommittedFact& commit) {
  Lineage& run = runs_[commit.key().run_id()];
  Expect(run.open && commit.key().generation() == run.generation, fact,
         "a generation that is not open committed");
  const std::int64_t last = run.committed.empty() ? 0 : run.committed.back();
  Expect(commit.position().step() > last && commit.position().step() <= run.granted_until, fact,
         "steps were committed twice, or never granted");
  const auto parts = disk_->parts.find({commit.folder(), commit.key().generation()});
  Expect(
      parts != disk_->parts.end() && static_cast<std::int32_t>(parts->second.size()) == run.world,
      fact, "a checkpoint was committed without all its parts");
  Expect(disk_->pending.contains(commit.folder()), fact, "committed before its manifest was safe");
  run.committed.push_back(commit.position().step());
}

void Promises::OnDiscarded(const v1::CheckpointDiscarded& discarded) {
  // Retired ones can't be gone back to; where the last one is damaged, the lineage ends earlier.
  std::erase(runs_[discarded.run_id()].committed, discarded.step());
}

void Promises::OnCharge(const v1::Fact& fact, const v1::ChargePosted& charge) {
  Membership& node = nodes_[charge.node_id()];
  Expect(node.alive && node.incarnation == charge.incarnation(), fact, "a charge for nobody");
  Expect(charge.from_ms() == node.charged_until_ms, fact,
         "a charge overlaps or leaves a gap after the one before");
  Expect(charge.to_ms() > charge.from_ms(), fact, "an empty charge");
  Expect(charge.to_ms() <= heard_ms_[charge.node_id()], fact,
         "a charge reaches beyond the last accepted heartbeat");
  node.charged_until_ms = charge.to_ms();
  runs_[charge.run_id()].cost += charge.amount();
}

std::int64_t Promises::CommittedSteps(const std::string& run_id) const {
  const auto run = runs_.find(run_id);
  return run == runs_.end() || run->second.committed.empty() ? 0 : run->second.committed.back();
}

double Promises::ChargedTo(const std::string& run_id) const {
  const auto run = runs_.find(run_id);
  return run == runs_.end() ? 0 : run->second.cost;
}

}  // namespace paceline::sim
