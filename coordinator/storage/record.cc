#include "coordinator/storage/record.h"

#include <xxhash.h>

#include <bit>
#include <cstring>

namespace paceline::storage {
namespace {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

constexpr std::int64_t kChecksumBytes = 8;
constexpr std::int64_t kPrefixBytes = kChecksumBytes + 8;

std::uint64_t Checksum(std::string_view covered, std::int64_t offset) {
  return XXH3_64bits_withSeed(covered.data(), covered.size(), static_cast<XXH64_hash_t>(offset));
}

template <typename Integer>
Integer Load(std::string_view bytes, std::int64_t at) {
  Integer value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

bool IsKind(std::uint32_t kind) {
  return kind >= static_cast<std::uint32_t>(RecordKind::kJournalHeader) &&
         kind <= static_cast<std::uint32_t>(RecordKind::kSnapshot);
}

}  // namespace

std::string EncodeRecord(RecordKind kind, std::string_view payload, std::int64_t offset) {
  const auto length = static_cast<std::uint32_t>(payload.size());
  std::string record(kPrefixBytes, '\0');
  std::memcpy(record.data() + kChecksumBytes, &length, sizeof(length));
  std::memcpy(record.data() + kChecksumBytes + sizeof(length), &kind, sizeof(kind));
  record.append(payload);
  const std::uint64_t checksum = Checksum(std::string_view(record).substr(kChecksumBytes), offset);
  std::memcpy(record.data(), &checksum, sizeof(checksum));
  return record;
}

std::optional<RecordView> ReadRecordAt(std::string_view file, std::int64_t offset) {
  const auto size = static_cast<std::int64_t>(file.size());
  if (size - offset < kPrefixBytes) return std::nullopt;
  const auto length = Load<std::uint32_t>(file, offset + kChecksumBytes);
  const auto kind = Load<std::uint32_t>(file, offset + kChecksumBytes + 4);
  if (!IsKind(kind) || length > kRecordPayloadMax || length > size - offset - kPrefixBytes) {
    return std::nullopt;
  }
  const std::string_view covered =
      file.substr(offset + kChecksumBytes, kPrefixBytes - kChecksumBytes + length);
  if (Checksum(covered, offset) != Load<std::uint64_t>(file, offset)) return std::nullopt;
  return RecordView{static_cast<RecordKind>(kind), file.substr(offset + kPrefixBytes, length),
                    offset + kPrefixBytes + length};
}

std::optional<std::int64_t> FindRecord(std::string_view file, std::int64_t from) {
  for (auto at = from; at + kPrefixBytes <= static_cast<std::int64_t>(file.size()); ++at) {
    if (ReadRecordAt(file, at)) return at;
  }
  return std::nullopt;
}

}  // namespace paceline::storage
