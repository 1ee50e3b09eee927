#include "worker/agent/outbox.h"

#include <algorithm>

namespace paceline {

void Outbox::Add(const v1::AgentMessage& message) {
  Entry entry{};
  const auto fill = [&](Kind kind, const v1::GenerationKey& key, std::int32_t rank,
                        std::int64_t step) {
    entry = {kind, key.run_id(), key.generation(), rank, step};
  };
  switch (message.body_case()) {
    case v1::AgentMessage::kReady:
      fill(Kind::kReady, message.ready().key(), message.ready().rank(), 0);
      break;
    case v1::AgentMessage::kCheckpointPart: {
      const v1::CheckpointPart& part = message.checkpoint_part();
      fill(Kind::kPart, part.key(), part.rank(), part.position().step());
      break;
    }
    case v1::AgentMessage::kCheckpointFailed: {
      const v1::CheckpointFailed& failed = message.checkpoint_failed();
      fill(Kind::kPartFailed, failed.key(), failed.rank(), failed.step());
      break;
    }
    case v1::AgentMessage::kWindowRequest:
      fill(Kind::kWindowRequest, message.window_request().key(), 0, 0);
      break;
    case v1::AgentMessage::kFinished:
      fill(Kind::kFinished, message.finished().key(), message.finished().rank(), 0);
      break;
    case v1::AgentMessage::kFailed:
      fill(Kind::kFailed, message.failed().key(), message.failed().rank(), 0);
      break;
    case v1::AgentMessage::kGone:
      fill(Kind::kGone, message.gone().key(), 0, 0);
      break;
    default:
      return;
  }
  pending_.insert_or_assign(entry, message);
  Bound(entry);
}

void Outbox::Bound(const Entry& added) {
  const bool part = added.kind == Kind::kPart || added.kind == Kind::kPartFailed;
  if (!part && added.kind != Kind::kGone) return;
  const auto alike = [&](const Entry& entry) {
    return entry.kind == added.kind &&
           (!part || (entry.run_id == added.run_id && entry.rank == added.rank));
  };
  const std::size_t limit = part ? kPartsPerRankMax : kGoneMax;
  std::size_t count = 0;
  for (const auto& [entry, message] : pending_) count += alike(entry) ? 1 : 0;
  if (count <= limit) return;
  // Entries are ordered, so of equal kind, run and rank the first is the oldest.
  const auto oldest = std::find_if(pending_.begin(), pending_.end(),
                                   [&](const auto& item) { return alike(item.first); });
  pending_.erase(oldest);
}

template <typename Predicate>
void Outbox::Drop(Predicate predicate) {
  std::erase_if(pending_, [&](const auto& item) { return predicate(item.first, item.second); });
}

void Outbox::OnCommitted(const std::string& run_id, std::int64_t step) {
  Drop([&](const Entry& entry, const v1::AgentMessage&) {
    return (entry.kind == Kind::kPart || entry.kind == Kind::kPartFailed) &&
           entry.run_id == run_id && entry.step <= step;
  });
}

void Outbox::OnGranted(const v1::GenerationKey& key, std::int64_t end_step) {
  Drop([&](const Entry& entry, const v1::AgentMessage& message) {
    return entry.kind == Kind::kWindowRequest && entry.run_id == key.run_id() &&
           entry.generation == key.generation() &&
           message.window_request().until_step() <= end_step;
  });
}

void Outbox::OnEnded(const v1::GenerationKey& key) {
  Drop([&](const Entry& entry, const v1::AgentMessage&) {
    return entry.kind != Kind::kGone && entry.run_id == key.run_id() &&
           entry.generation <= key.generation();
  });
}

void Outbox::OnStarted(const v1::GenerationKey& key) {
  Drop([&](const Entry& entry, const v1::AgentMessage&) {
    return entry.run_id == key.run_id() && entry.generation < key.generation();
  });
}

std::vector<v1::AgentMessage> Outbox::Pending() const {
  std::vector<v1::AgentMessage> messages;
  for (const auto& [entry, message] : pending_) messages.push_back(message);
  return messages;
}

}  // namespace paceline
