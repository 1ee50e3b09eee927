#include "worker/data/shard.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr std::int32_t kLlmCMagicU16 = 20240520;
constexpr std::int32_t kLlmCMagicU32 = 20240801;
constexpr std::int32_t kLlmCVersionU16 = 1;
constexpr std::int32_t kLlmCVersionU32 = 7;
constexpr std::int64_t kLlmCHeaderBytes = 256 * 4;
// Keeps byte offsets of the widest token within 63 bits.
constexpr std::int64_t kTokensMax = std::int64_t{1} << 56;

template <typename T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

absl::Status Bad(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// The parts of an .idx that was found to be whole.
struct Index {
  TokenType type;
  std::int64_t tokens;
  std::int64_t documents;
};

// Walks lengths and byte offsets. A run reads the .bin as one row of tokens, so the sequences
// must lie one after the other; every writer lays them so.
absl::StatusOr<std::int64_t> SumSequences(const std::string& path, const std::byte* lengths,
                                          const std::byte* offsets, std::int64_t sequences,
                                          std::int64_t width) {
  std::int64_t tokens = 0;
  for (std::int64_t i = 0; i < sequences; ++i) {
    const auto length = Load<std::int32_t>(lengths + i * 4);
    if (length < 0) {
      return Bad(path,
                 absl::StrCat("sequence ", i, " has length ", length, "; lengths are 0 or more"));
    }
    if (const auto offset = Load<std::int64_t>(offsets + i * 8); offset != tokens * width) {
      return Bad(path, absl::StrCat("sequence ", i, " starts at byte ", offset, " but byte ",
                                    tokens * width,
                                    " follows the one before; the sequences of "
                                    "a corpus must lie one after the other"));
    }
    tokens += length;
    if (tokens > kTokensMax)
      return Bad(path, absl::StrCat("names more than ", kTokensMax, " tokens"));
  }
  return tokens;
}

// The document index starts at 0, never falls, and ends at the number of sequences.
absl::Status CheckDocuments(const std::string& path, const std::byte* entries, std::int64_t count,
                            std::int64_t sequences) {
  std::int64_t previous = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto entry = Load<std::int64_t>(entries + i * 8);
    if (entry < previous || entry > sequences || (i == 0 && entry != 0)) {
      return Bad(path, absl::StrCat("document entry ", i, " is ", entry,
                                    "; entries start at 0, never fall, and stay within the ",
                                    sequences, " sequences"));
    }
    previous = entry;
  }
  return absl::OkStatus();
}

absl::StatusOr<Index> ParseIndex(const std::string& path, std::span<const std::byte> file) {
  const auto size = static_cast<std::int64_t>(file.size());
  if (size < kMegatronHeaderBytes) {
    return Bad(path, absl::StrCat("truncated: ", size, " bytes, a Megatron index has a header of ",
                                  kMegatronHeaderBytes));
  }
  if (std::memcmp(file.data(), kMegatronMagic, sizeof(kMegatronMagic)) != 0) {
    return Bad(path, "bad magic: a Megatron index starts with MMIDIDX");
  }
  if (const auto version = Load<std::uint64_t>(file.data() + 9); version != 1) {
    return Bad(path, absl::StrCat("version ", version, "; only version 1 is known"));
  }
  const auto code = Load<std::uint8_t>(file.data() + 17);
  if (code < 1 || code == 6 || code == 7 || code > 8) {
    return Bad(path, absl::StrCat("dtype code ", static_cast<int>(code), "; tokens are 1 (u8), ",
                                  "2 (i8), 3 (i16), 4 (i32), 5 (i64) or 8 (u16)"));
  }
  const auto sequences_field = Load<std::uint64_t>(file.data() + 18);
  const auto documents_field = Load<std::uint64_t>(file.data() + 26);
  // Bounded by the size first, so that what follows cannot overflow.
  const std::int64_t body = size - kMegatronHeaderBytes;
  if (sequences_field > static_cast<std::uint64_t>(body / 12) ||
      documents_field > static_cast<std::uint64_t>(body / 8)) {
    return Bad(path, absl::StrCat("truncated: the header names ", sequences_field,
                                  " sequences and ", documents_field,
                                  " document entries, more than its ", size, " bytes hold"));
  }
  const auto sequences = static_cast<std::int64_t>(sequences_field);
  const auto documents = static_cast<std::int64_t>(documents_field);
  const std::int64_t expected = sequences * 12 + documents * 8;
  if (body != expected && body != expected + sequences) {
    return Bad(path, absl::StrCat(body < expected ? "truncated" : "too long", ": ", size,
                                  " bytes, ", sequences, " sequences and ", documents,
                                  " document entries need ", kMegatronHeaderBytes + expected));
  }
  const std::byte* lengths = file.data() + kMegatronHeaderBytes;
  const std::byte* offsets = lengths + sequences * 4;
  const auto type = static_cast<TokenType>(code);
  ASSIGN_OR_RETURN(const std::int64_t tokens,
                   SumSequences(path, lengths, offsets, sequences, BytesOf(type)));
  RETURN_IF_ERROR(CheckDocuments(path, offsets + sequences * 8, documents, sequences));
  // N documents have N + 1 entries, the first of them 0.
  return Index{type, tokens, std::max<std::int64_t>(documents - 1, 0)};
}

// True where every token lies in [0, vocab_size). No branch inside, so that it vectorises.
template <typename T>
bool Convert(const std::byte* from, std::uint64_t vocab_size, std::span<std::int32_t> out) {
  bool inside = true;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const T token = Load<T>(from + i * sizeof(T));
    inside &= static_cast<std::uint64_t>(static_cast<std::int64_t>(token)) < vocab_size;
    out[i] = static_cast<std::int32_t>(token);
  }
  return inside;
}

bool Convert(TokenType type, const std::byte* from, std::uint64_t vocab_size,
             std::span<std::int32_t> out) {
  switch (type) {
    case TokenType::kU8:
      return Convert<std::uint8_t>(from, vocab_size, out);
    case TokenType::kI8:
      return Convert<std::int8_t>(from, vocab_size, out);
    case TokenType::kI16:
      return Convert<std::int16_t>(from, vocab_size, out);
    case TokenType::kI32:
      return Convert<std::int32_t>(from, vocab_size, out);
    case TokenType::kI64:
      return Convert<std::int64_t>(from, vocab_size, out);
    case TokenType::kU16:
      return Convert<std::uint16_t>(from, vocab_size, out);
    case TokenType::kU32:
      return Convert<std::uint32_t>(from, vocab_size, out);
  }
  PACELINE_CHECK(false);
}

std::int64_t TokenAt(TokenType type, const std::byte* at) {
  switch (type) {
    case TokenType::kU8:
      return Load<std::uint8_t>(at);
    case TokenType::kI8:
      return Load<std::int8_t>(at);
    case TokenType::kI16:
      return Load<std::int16_t>(at);
    case TokenType::kI32:
      return Load<std::int32_t>(at);
    case TokenType::kI64:
      return Load<std::int64_t>(at);
    case TokenType::kU16:
      return Load<std::uint16_t>(at);
    case TokenType::kU32:
      return Load<std::uint32_t>(at);
  }
  PACELINE_CHECK(false);
}

}  // namespace

const char* Name(ShardFormat format) {
  return format == ShardFormat::kMegatron ? "megatron" : "llm.c";
}

const char* Name(TokenType type) {
  switch (type) {
    case TokenType::kU8:
      return "u8";
    case TokenType::kI8:
      return "i8";
    case TokenType::kI16:
      return "i16";
    case TokenType::kI32:
      return "i32";
    case TokenType::kI64:
      return "i64";
    case TokenType::kU16:
      return "u16";
    case TokenType::kU32:
      return "u32";
  }
  PACELINE_CHECK(false);
}

std::int64_t BytesOf(TokenType type) {
  switch (type) {
    case TokenType::kU8:
    case TokenType::kI8:
      return 1;
    case TokenType::kI16:
    case TokenType::kU16:
      return 2;
    case TokenType::kI32:
    case TokenType::kU32:
      return 4;
    case TokenType::kI64:
      return 8;
  }
  PACELINE_CHECK(false);
}

std::string IndexPathOf(const std::string& bin_path) {
  PACELINE_CHECK(bin_path.ends_with(".bin"));
  return bin_path.substr(0, bin_path.size() - 4) + ".idx";
}

absl::StatusOr<Shard> Shard::Open(const std::string& path, ShardFormat format) {
  Shard shard;
  shard.path_ = path;
  shard.format_ = format;
  ASSIGN_OR_RETURN(shard.file_, MappedFile::Open(path));
  RETURN_IF_ERROR(format == ShardFormat::kMegatron ? shard.ParseMegatron() : shard.ParseLlmC());
  shard.file_.AdviseRandom();
  return shard;
}

absl::Status Shard::ParseMegatron() {
  const std::string index_path = IndexPathOf(path_);
  ASSIGN_OR_RETURN(const MappedFile index_file, MappedFile::Open(index_path));
  ASSIGN_OR_RETURN(const Index index, ParseIndex(index_path, index_file.bytes()));
  index_bytes_ = static_cast<std::int64_t>(index_file.bytes().size());
  type_ = index.type;
  tokens_ = index.tokens;
  documents_ = index.documents;
  if (const std::int64_t expected = tokens_ * BytesOf(type_); bytes() != expected) {
    return Bad(path_, absl::StrCat(bytes() < expected ? "truncated: " : "too long: ", bytes(),
                                   " bytes, but ", index_path, " names ", tokens_, " tokens of ",
                                   BytesOf(type_), " bytes, ", expected, " in all"));
  }
  return absl::OkStatus();
}

absl::Status Shard::ParseLlmC() {
  const auto magic = bytes() < 4 ? 0 : Load<std::int32_t>(file_.bytes().data());
  if (magic != kLlmCMagicU16 && magic != kLlmCMagicU32) {
    return Bad(path_,
               absl::StrCat("magic ", magic, ": an llm.c shard starts with ", kLlmCMagicU16, " or ",
                            kLlmCMagicU32, ", and a Megatron .bin needs its .idx beside it"));
  }
  if (bytes() < kLlmCHeaderBytes) {
    return Bad(path_, absl::StrCat("truncated: ", bytes(),
                                   " bytes, an llm.c shard has a header of ", kLlmCHeaderBytes));
  }
  const auto version = Load<std::int32_t>(file_.bytes().data() + 4);
  const auto tokens = Load<std::int32_t>(file_.bytes().data() + 8);
  const std::int32_t known = magic == kLlmCMagicU16 ? kLlmCVersionU16 : kLlmCVersionU32;
  if (version != known) {
    return Bad(path_, absl::StrCat("version ", version, "; llm.c shards of magic ", magic,
                                   " have version ", known));
  }
  if (tokens < 0) return Bad(path_, absl::StrCat("the header names ", tokens, " tokens"));
  type_ = magic == kLlmCMagicU16 ? TokenType::kU16 : TokenType::kU32;
  tokens_ = tokens;
  data_begin_ = kLlmCHeaderBytes;
  if (const std::int64_t expected = data_begin_ + tokens_ * BytesOf(type_); bytes() != expected) {
    return Bad(path_, absl::StrCat(bytes() < expected ? "truncated: " : "too long: ", bytes(),
                                   " bytes, but its header names ", tokens_, " tokens, ", expected,
                                   " bytes in all"));
  }
  return absl::OkStatus();
}

absl::Status Shard::Read(std::int64_t begin, std::int64_t vocab_size,
                         std::span<std::int32_t> out) const {
  PACELINE_CHECK(begin >= 0 && begin + static_cast<std::int64_t>(out.size()) <= tokens_);
  const std::int64_t width = BytesOf(type_);
  const std::byte* from = file_.bytes().data() + data_begin_ + begin * width;
  if (Convert(type_, from, static_cast<std::uint64_t>(vocab_size), out)) return absl::OkStatus();
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::int64_t token = TokenAt(type_, from + i * width);
    if (token >= 0 && token < vocab_size) continue;
    return Bad(path_, absl::StrCat("token ", token, " at position ", begin + i,
                                   " is outside the vocabulary: vocab_size = ", vocab_size,
                                   " allows 0 to ", vocab_size - 1));
  }
  PACELINE_CHECK(false);
}

void Shard::WillNeed(std::int64_t begin, std::int64_t count) const {
  const std::int64_t width = BytesOf(type_);
  file_.WillNeed(data_begin_ + begin * width, count * width);
}

}  // namespace paceline
