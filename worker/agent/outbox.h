// What an agent has told the coordinator and must tell again after a reconnect, because the
// coordinator has not yet shown that it knows: a lost stream may have lost any message.
// Invariant: bounded. Of one rank at most kPartsPerRankMax parts wait (the oldest go first), of
// ended generations at most kGoneMax.
// Threading: confined to the agent's loop.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "paceline/v1/coordinator.pb.h"

namespace paceline {

class Outbox {
 public:
  static constexpr std::size_t kPartsPerRankMax = 4;
  static constexpr std::size_t kGoneMax = 16;

  // Keeps `message` until it is acknowledged; it replaces one that says the same thing of the
  // same rank and step. Heartbeats and registrations are not kept.
  void Add(const v1::AgentMessage& message);

  // Acknowledgements. Parts of `step` and earlier ones are done with.
  void OnCommitted(const std::string& run_id, std::int64_t step);
  // Windows up to `end_step` are granted.
  void OnGranted(const v1::GenerationKey& key, std::int64_t end_step);
  // Of the run's generations up to `key` only GenerationGone still matters.
  void OnEnded(const v1::GenerationKey& key);
  // A generation newer than all before it: nothing of those before it matters.
  void OnStarted(const v1::GenerationKey& key);

  // In an order that a coordinator can take: a rank's parts before its end.
  std::vector<v1::AgentMessage> Pending() const;

 private:
  enum class Kind { kReady, kPart, kPartFailed, kWindowRequest, kFinished, kFailed, kGone };
  struct Entry {
    Kind kind;
    std::string run_id;
    std::uint64_t generation = 0;
    std::int32_t rank = 0;
    std::int64_t step = 0;
    auto operator<=>(const Entry&) const = default;
  };

  template <typename Predicate>
  void Drop(Predicate predicate);
  void Bound(const Entry& added);

  std::map<Entry, v1::AgentMessage> pending_;
};

}  // namespace paceline
