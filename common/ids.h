// Distinct integer types, so that a rank is never passed for a node.
// Invariant: an id is a plain value; comparing and hashing need nothing else.
// Threading: any thread.
#pragma once

#include <compare>
#include <cstdint>

namespace paceline {

template <typename Tag, typename Value>
class Id {
 public:
  constexpr Id() = default;
  constexpr explicit Id(Value value) : value_(value) {}
  constexpr Value value() const { return value_; }
  constexpr auto operator<=>(const Id&) const = default;

 private:
  Value value_{};
};

using NodeId = Id<struct NodeIdTag, std::uint64_t>;            // given by the coordinator
using Incarnation = Id<struct IncarnationTag, std::uint64_t>;  // one life of a node's agent
using Rank = Id<struct RankTag, std::int32_t>;
using Generation = Id<struct GenerationTag, std::uint64_t>;  // 1 is a run's first
using Step = Id<struct StepTag, std::int64_t>;               // optimizer steps completed
using Epoch = Id<struct EpochTag, std::uint64_t>;            // one reign of a coordinator

}  // namespace paceline
