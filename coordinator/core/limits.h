// Bounds on what agents and clients may say, and the refusals when they say more.
// Threading: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/status.h"

namespace paceline::core {

inline constexpr std::size_t kMaxNameBytes = 128;      // node, run and request ids
inline constexpr std::size_t kMaxAddressBytes = 1024;  // hosts, transport addresses
inline constexpr std::size_t kMaxAddressBytesPerPeer = 8;
inline constexpr std::size_t kMaxPathBytes = 4096;
inline constexpr std::size_t kMaxRunFileBytes = 1 << 20;
inline constexpr std::size_t kMaxErrorBytes = 8192;  // longer texts are cut
inline constexpr std::size_t kMaxStderrLines = 50;
inline constexpr std::size_t kMaxStderrLineBytes = 2048;
inline constexpr std::size_t kMaxPartMessageBytes = 16 << 20;
inline constexpr int kMaxSlots = 1024;  // of a node
inline constexpr std::int64_t kMaxWorldSize = 100'000;
inline constexpr std::size_t kMaxCheckpointsInFlight = 4;    // of a run
inline constexpr std::size_t kMaxDamagedCheckpoints = 1000;  // of a submission
inline constexpr std::size_t kMaxWaitingCalls = 1000;

// Letters, digits, '-', '_', '.'; not "." or "..", since ids become folders and labels.
absl::Status CheckName(const char* field, const std::string& value, bool may_be_empty);
absl::Status CheckLength(const char* field, const std::string& value, std::size_t bytes_max);

// At most `bytes_max` bytes of `text`, cut between UTF-8 characters, with "..." where it was cut.
std::string Cut(const std::string& text, std::size_t bytes_max);

}  // namespace paceline::core
