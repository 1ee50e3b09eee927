// A record of a journal or snapshot file, in memory:
//   u64 xxh3-64, seeded with the record's offset, of what follows | u32 length | u32 kind | payload
// The seed ties a record to its place, so that a copy of one inside another's payload is none.
// Invariant: what ReadRecordAt returns was written at that offset, whole.
// Threading: any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace paceline::storage {

// The upper three bytes are the same in every kind: "PLJ".
enum class RecordKind : std::uint32_t {
  kJournalHeader = 0x4a4c5001,
  kFactBatch = 0x4a4c5002,
  kSnapshotHeader = 0x4a4c5003,
  kSnapshot = 0x4a4c5004,
};

inline constexpr std::int64_t kRecordPayloadMax = 256 << 20;

struct RecordView {
  RecordKind kind;
  std::string_view payload;  // inside the bytes that were read
  std::int64_t end = 0;      // offset of the next record
};

std::string EncodeRecord(RecordKind kind, std::string_view payload, std::int64_t offset);

// Nothing: no whole record begins at `offset`.
std::optional<RecordView> ReadRecordAt(std::string_view file, std::int64_t offset);

// Offset of the first whole record that begins at `from` or later.
std::optional<std::int64_t> FindRecord(std::string_view file, std::int64_t from);

}  // namespace paceline::storage
