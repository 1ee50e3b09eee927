#include "coordinator/core/costs.h"

namespace paceline::core {

double AmountOf(int slots, std::int64_t milliseconds, double slot_hour) {
  return slots * (static_cast<double>(milliseconds) / 3'600'000.0) * slot_hour;
}

bool ChargeUpTo(const State& state, const Node& node, std::int64_t heartbeat_ms,
                v1::ChargePosted* out) {
  if (!node.alive || heartbeat_ms <= node.charged_until_ms) return false;
  out->set_node_id(node.id.value());
  out->set_incarnation(node.info.incarnation());
  out->set_from_ms(node.charged_until_ms);
  out->set_to_ms(heartbeat_ms);
  out->set_slots(node.info.slots());
  if (const Run* run = state.FindRun(node.payer); run != nullptr) {
    out->set_run_id(run->id());
    out->set_member(run->file.run.member);
    out->set_project(run->file.run.project);
    out->set_currency(run->file.rates.currency);
    out->set_amount(AmountOf(node.info.slots(), heartbeat_ms - node.charged_until_ms,
                             run->file.rates.slot_hour));
  }
  return true;
}

}  // namespace paceline::core
