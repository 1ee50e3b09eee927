#include "tests/sim/promises.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/parallel_layout.h"

namespace paceline::sim {
namespace {

// The journal counts whole milliseconds from each opening on.
constexpr std::int64_t kClockStepsMs = 5;
// CoreOptions::charge_interval, and what passes between a heartbeat and the Tick that charges it.
constexpr std::int64_t kChargeIntervalMs = 10'000 + 1'500;

}  // namespace

void Promises::Expect(bool holds, const v1::Fact& fact, const std::string& otherwise) {
  if (!holds) breaches_.push_back(absl::StrCat("fact ", fact.index(), ": ", otherwise));
}

void Promises::OnFact(const v1::Fact& fact) {
  Expect(static_cast<std::int64_t>(fact.index()) == last_index_ + 1, fact, "index out of order");
  last_index_ = static_cast<std::int64_t>(fact.index());
  switch (fact.body_case()) {
    case v1::Fact::kEpochOpened:
      epoch_ = fact.epoch_opened().epoch();
      break;
    case v1::Fact::kRunSubmitted:
      runs_[fact.run_submitted().request().run_id()].active = true;
      break;
    case v1::Fact::kRunEnded:
      for (const auto& [id, node] : nodes_) {
        if (node.run_id == fact.run_ended().run_id()) ExpectCharged(fact, id, node);
      }
      runs_[fact.run_ended().run_id()].active = false;
      break;
    case v1::Fact::kNodeJoined:
      OnJoined(fact, fact.node_joined());
      break;
    case v1::Fact::kNodeLeft: {
      Membership& node = nodes_[fact.node_left().node_id()];
      ExpectCharged(fact, fact.node_left().node_id(), node);
      node.alive = false;
      break;
    }
    case v1::Fact::kNodeDrained:
      nodes_[fact.node_drained().node_id()].drained = true;
      break;
    case v1::Fact::kNodeUndrained:
      nodes_[fact.node_undrained().node_id()].drained = false;
      break;
    case v1::Fact::kGenerationStarted:
      OnStarted(fact, fact.generation_started());
      break;
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

void Promises::OnJoined(const v1::Fact& fact, const v1::NodeJoined& joined) {
  Membership& node = nodes_[joined.node_id()];
  const std::uint64_t incarnation = joined.node().incarnation();
  Expect(!node.alive, fact, "a node joined that was there");
  Expect(incarnation >= node.incarnation, fact, "an older incarnation joined");
  node = {.alive = true,
          .incarnation = incarnation,
          .charged_until_ms = fact.at_ms(),
          .run_id = joined.node().run_id(),
          .slots = joined.node().slots(),
          .drained = node.drained};
  OnHeartbeat(joined.node_id(), incarnation, fact.at_ms());
  OnHeartbeatTaken(joined.node_id(), incarnation);
}

void Promises::OnStarted(const v1::Fact& fact, const v1::GenerationStarted& started) {
  Lineage& run = runs_[started.key().run_id()];
  const std::int64_t committed = run.committed.empty() ? 0 : run.committed.back();
  Expect(!run.open, fact, "a second generation is open");
  Expect(started.key().generation() == run.generation + 1, fact,
         "generations are not counted one by one");
  Expect(started.live() ? started.start_step() >= committed : started.start_step() == committed,
         fact, "a generation starts neither from the last committed checkpoint nor after it");
  Expect(run.granted_until == started.start_step(), fact,
         "windows of an earlier generation are held");
  ExpectPlacement(fact, started);
  run.open = true;
  run.generation = started.key().generation();
  run.world = started.placements_size();
}

void Promises::ExpectPlacement(const v1::Fact& fact, const v1::GenerationStarted& started) {
  const v1::Layout& told = started.layout();
  Expect(started.placements_size() == told.pipeline() * told.data(), fact,
         "the ranks are not those of the layout");
  std::set<std::pair<std::uint64_t, std::int32_t>> slots;
  std::set<std::uint64_t> nodes;
  for (const v1::RankPlacement& placement : started.placements()) {
    const Membership& node = nodes_[placement.node_id()];
    Expect(node.alive, fact, absl::StrCat("node ", placement.node_id(), " has left"));
    Expect(!node.drained, fact, absl::StrCat("node ", placement.node_id(), " is drained"));
    Expect(placement.slot() >= 0 && placement.slot() < node.slots, fact, "there is no such slot");
    Expect(slots.insert({placement.node_id(), placement.slot()}).second, fact,
           "two ranks have one slot");
    nodes.insert(placement.node_id());
  }
  Expect(static_cast<int>(nodes.size()) <= nodes_max_, fact, "it has more nodes than it asked for");
  ParallelLayout layout;
  layout.pipeline = told.pipeline();
  layout.data = told.data();
  layout.expert = told.expert();
  layout.schedule = told.schedule();
  std::vector<int> taken(static_cast<std::size_t>(micro_batches_), 0);
  for (int share = 0; share < layout.data; ++share) {
    const MicroBatchRange range = MicroBatchesOf(layout, share, micro_batches_);
    Expect(range.count > 0 && range.At(range.count - 1) < micro_batches_, fact,
           "a share takes no micro-batch, or one beyond the step's");
    for (std::int64_t i = 0; i < range.count && range.At(i) < micro_batches_; ++i) {
      ++taken[static_cast<std::size_t>(range.At(i))];
    }
  }
  Expect(std::all_of(taken.begin(), taken.end(), [](int times) { return times == 1; }), fact,
         "the global batch is not what it was");
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
  Expect(charge.to_ms() <= heard_[{charge.node_id(), charge.incarnation()}].at_ms, fact,
         "a charge reaches beyond the last accepted heartbeat");
  node.charged_until_ms = charge.to_ms();
  if (charge.run_id().empty()) return;
  const double hours = static_cast<double>(charge.to_ms() - charge.from_ms()) / 3'600'000.0;
  const double amount = node.slots * hours * kSlotHour;
  Expect(std::abs(charge.amount() - amount) <= 1e-9 * amount, fact, "a charge of another amount");
  runs_[charge.run_id()].cost += charge.amount();
}

void Promises::OnHeartbeat(std::uint64_t node_id, std::uint64_t incarnation, std::int64_t at_ms) {
  const std::string& run_id = nodes_[node_id].run_id;
  heard_[{node_id, incarnation}] = {at_ms, epoch_, !run_id.empty() && runs_[run_id].active};
}

void Promises::ExpectCharged(const v1::Fact& fact, std::uint64_t node_id, const Membership& node) {
  if (!node.alive) return;
  const Heard& heard = taken_[{node_id, node.incarnation}];
  std::int64_t uncharged_ms = kClockStepsMs;
  if (heard.epoch != epoch_) {
    // What the coordinator before heard went with it, but for what it had charged; idle nodes it
    // charged when they came to serve a run.
    if (!heard.paid) return;
    uncharged_ms += kChargeIntervalMs;
  }
  Expect(node.charged_until_ms >= heard.at_ms - uncharged_ms, fact,
         absl::StrCat("node ", node_id, " was heard until ", heard.at_ms, " by epoch ", heard.epoch,
                      " and is charged until ", node.charged_until_ms, " only"));
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
