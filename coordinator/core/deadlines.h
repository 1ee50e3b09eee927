// DeadlineSet: which of many keys is due, in the order of time and then of key.
// Invariant: a key has one deadline at most.
// Threading: confined to the coordinator loop; holds no lock.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "common/clock.h"

namespace paceline::core {

template <typename Key>
class DeadlineSet {
 public:
  void Set(const Key& key, SteadyTime at) {
    const auto [it, added] = by_key_.emplace(key, at);
    if (!added) {
      if (it->second == at) return;
      by_time_.erase({it->second, key});
      it->second = at;
    }
    by_time_.emplace(at, key);
  }

  void Clear(const Key& key) {
    const auto it = by_key_.find(key);
    if (it == by_key_.end()) return;
    by_time_.erase({it->second, key});
    by_key_.erase(it);
  }

  // Every deadline comes so much later.
  void Postpone(SteadyTime::duration by) {
    for (const auto& [key, at] : std::map<Key, SteadyTime>(by_key_)) Set(key, at + by);
  }

  // Of one key; nullopt: it has none.
  std::optional<SteadyTime> At(const Key& key) const {
    const auto it = by_key_.find(key);
    return it == by_key_.end() ? std::nullopt : std::optional(it->second);
  }

  // SteadyTime::max(): none.
  SteadyTime Next() const { return by_time_.empty() ? SteadyTime::max() : by_time_.begin()->first; }

  // Keys whose deadline is `now` or earlier, in key order: a decision does not depend on the
  // order in which clocks ran out.
  std::vector<Key> DueAt(SteadyTime now) const {
    std::vector<Key> due;
    for (const auto& [at, key] : by_time_) {
      if (at > now) break;
      due.push_back(key);
    }
    std::sort(due.begin(), due.end());
    return due;
  }

 private:
  std::map<Key, SteadyTime> by_key_;
  std::set<std::pair<SteadyTime, Key>> by_time_;
};

}  // namespace paceline::core
