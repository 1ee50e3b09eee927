// Names of checkpoint folders: "step-00000100-g2" was written by generation 2 after step 100.
// Invariant: no two generations write one folder, so what an old one still writes, or what is
// still to be deleted of it, never meets what a new one writes. One step and generation has one
// name.
// Threading: pure functions.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace paceline {

struct CheckpointName {
  std::int64_t step = 0;
  std::uint64_t generation = 0;

  auto operator<=>(const CheckpointName&) const = default;  // by step, then generation
};

std::string CheckpointFolderName(const CheckpointName& name);

// nullopt: not a name that CheckpointFolderName gives.
std::optional<CheckpointName> ParseCheckpointFolderName(std::string_view name);

// What the folder's name gets behind it where the checkpoint was found damaged and is kept.
inline constexpr char kSetAside[] = ".damaged";

}  // namespace paceline
