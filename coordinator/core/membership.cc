#include "coordinator/core/membership.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/protocol.h"
#include "coordinator/core/limits.h"

namespace paceline::core {
namespace {

absl::Status CheckFields(const v1::RegisterNode& node) {
  RETURN_IF_ERROR(CheckName("name", node.name(), /*may_be_empty=*/false));
  RETURN_IF_ERROR(CheckName("run_id", node.run_id(), /*may_be_empty=*/true));
  RETURN_IF_ERROR(CheckLength("host", node.host(), kMaxAddressBytes));
  RETURN_IF_ERROR(CheckLength("metrics_address", node.metrics_address(), kMaxAddressBytes));
  RETURN_IF_ERROR(CheckLength("snapshot_address", node.snapshot_address(), kMaxAddressBytes));
  if (node.slots() < 1 || node.slots() > kMaxSlots) {
    return absl::InvalidArgumentError(
        absl::StrCat("slots = ", node.slots(), ": a node has 1 to ", kMaxSlots, " slots"));
  }
  if (node.protocol_version() > kNodeProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the agent speaks protocol ", node.protocol_version(), ", this coordinator up to ",
        kNodeProtocolVersion, ": upgrade the coordinator"));
  }
  return absl::OkStatus();
}

}  // namespace

void LeaseTable::Grant(NodeId node, Incarnation incarnation, std::chrono::milliseconds ttl,
                       SteadyTime now) {
  leases_[node] = {incarnation, ttl};
  deadlines_.Set(node, now + ttl);
}

absl::Status LeaseTable::Renew(NodeId node, Incarnation incarnation, SteadyTime now) {
  const auto it = leases_.find(node);
  if (it == leases_.end()) {
    return absl::NotFoundError(absl::StrCat("node ", node.value(), " holds no lease"));
  }
  if (incarnation < it->second.incarnation) {
    return absl::FailedPreconditionError(
        absl::StrCat("incarnation ", incarnation.value(), " of node ", node.value(),
                     " was replaced by ", it->second.incarnation.value()));
  }
  if (incarnation > it->second.incarnation) {
    return absl::NotFoundError(absl::StrCat("incarnation ", incarnation.value(), " of node ",
                                            node.value(), " has not registered"));
  }
  deadlines_.Set(node, now + it->second.ttl);
  return absl::OkStatus();
}

void LeaseTable::Remove(NodeId node) {
  leases_.erase(node);
  deadlines_.Clear(node);
}

std::chrono::milliseconds LeaseTable::TtlOf(NodeId node) const {
  const auto it = leases_.find(node);
  return it == leases_.end() ? std::chrono::milliseconds{0} : it->second.ttl;
}

bool LeaseTable::MostAreSilent(SteadyTime now) const {
  const auto silent = static_cast<std::size_t>(
      std::count_if(leases_.begin(), leases_.end(), [&](const auto& entry) {
        return *deadlines_.At(entry.first) - now <= entry.second.ttl / 2;
      }));
  return silent >= 2 && 2 * silent > leases_.size();
}

absl::StatusOr<Admission> Admit(const State& state, const v1::RegisterNode& node) {
  RETURN_IF_ERROR(CheckFields(node));
  const auto known = state.node_by_name.find(node.name());
  if (known == state.node_by_name.end()) {
    if (state.nodes.size() >= kMaxNodes &&
        std::all_of(state.nodes.begin(), state.nodes.end(),
                    [](const auto& entry) { return entry.second.alive; })) {
      return absl::ResourceExhaustedError(
          absl::StrCat("this coordinator serves ", kMaxNodes, " nodes already"));
    }
    return Admission::kJoins;
  }
  const Node& last = state.nodes.at(known->second);
  const Incarnation incarnation{node.incarnation()};
  if (incarnation < last.incarnation()) {
    return absl::FailedPreconditionError(
        absl::StrCat("node ", node.name(), ": incarnation ", incarnation.value(),
                     " was replaced by ", last.incarnation().value(), "; this agent must end"));
  }
  if (!last.alive) return Admission::kJoins;
  return incarnation == last.incarnation() ? Admission::kReconnects : Admission::kReplaces;
}

}  // namespace paceline::core
