#include "coordinator/rpc/fact_text.h"

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

std::string KeyText(const v1::GenerationKey& key) {
  return absl::StrCat("run ", key.run_id(), " generation ", key.generation());
}

}  // namespace

std::string FactText(const v1::Fact& fact) {
  switch (fact.body_case()) {
    case v1::Fact::kEpochOpened:
      return absl::StrCat("epoch ", fact.epoch_opened().epoch(), " opened");
    case v1::Fact::kNodeJoined: {
      const v1::RegisterNode& node = fact.node_joined().node();
      return absl::StrCat("node ", node.name(), " (", fact.node_joined().node_id(),
                          ") joined from ", node.host(), " with ", node.slots(),
                          " slots, agent pid ", node.pid());
    }
    case v1::Fact::kNodeLeft:
      return absl::StrCat("node ", fact.node_left().node_id(),
                          " left: ", fact.node_left().reason());
    case v1::Fact::kRunSubmitted:
      return absl::StrCat("run ", fact.run_submitted().request().run_id(),
                          fact.run_submitted().request().resume() ? " resumed" : " submitted");
    case v1::Fact::kGenerationStarted: {
      const v1::GenerationStarted& started = fact.generation_started();
      return absl::StrCat(KeyText(started.key()), " started on ", started.placements_size(),
                          " ranks at step ", started.start_step(), ": ", started.reason());
    }
    case v1::Fact::kGenerationEnded:
      return absl::StrCat(KeyText(fact.generation_ended().key()), " ended after step ",
                          fact.generation_ended().last_step(), ": ",
                          fact.generation_ended().reason());
    case v1::Fact::kWindowsRolledBack:
      return absl::StrCat(KeyText(fact.windows_rolled_back().key()), " rolled back steps [",
                          fact.windows_rolled_back().window().first_step(), ", ",
                          fact.windows_rolled_back().window().end_step(), "), ",
                          fact.windows_rolled_back().lost_steps(), " of them done");
    case v1::Fact::kCheckpointCommitted:
      return absl::StrCat(KeyText(fact.checkpoint_committed().key()), " committed checkpoint ",
                          fact.checkpoint_committed().folder());
    case v1::Fact::kCheckpointDiscarded:
      return absl::StrCat("run ", fact.checkpoint_discarded().run_id(), " discarded checkpoint ",
                          fact.checkpoint_discarded().folder(), ": ",
                          fact.checkpoint_discarded().reason());
    case v1::Fact::kRunStopRequested:
      return absl::StrCat("run ", fact.run_stop_requested().run_id(),
                          " is asked to stop: ", fact.run_stop_requested().reason());
    case v1::Fact::kRunEnded:
      return absl::StrCat("run ", fact.run_ended().run_id(), " ended: ", fact.run_ended().reason());
    case v1::Fact::kNodeDrained:
      return absl::StrCat("node ", fact.node_drained().node_id(),
                          fact.node_drained().quarantined() ? " quarantined: " : " drained: ",
                          fact.node_drained().reason());
    case v1::Fact::kNodeUndrained:
      return absl::StrCat("node ", fact.node_undrained().node_id(), " undrained");
    case v1::Fact::kNodeFailed:
      return absl::StrCat("node ", fact.node_failed().node_id(),
                          " failed: ", fact.node_failed().reason());
    case v1::Fact::kMoveRequested:
      return absl::StrCat(KeyText(fact.move_requested().key()),
                          " is asked to move: ", fact.move_requested().reason());
    case v1::Fact::kFirstStepDone:
      return absl::StrCat(KeyText(fact.first_step_done().key()), " has done its first step");
    case v1::Fact::kWindowGranted:
    case v1::Fact::kChargePosted:
    case v1::Fact::BODY_NOT_SET:
      return "";
  }
  return "";
}

}  // namespace paceline
