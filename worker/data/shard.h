// One shard of tokens: a Megatron pair (.bin, .idx) or an llm.c file (.bin), memory-mapped.
// Layouts, little-endian:
//   Megatron .idx: "MMIDIDX\0\0"; u64 version 1; u8 dtype; u64 sequences; u64 document entries;
//     i32 lengths[sequences]; i64 byte offsets[sequences]; i64 document index[entries];
//     optional i8 modes[sequences]. The .bin is raw tokens.
//   llm.c: 256 x i32 {20240520, 1, tokens, 0...} then u16, or {20240801, 7, tokens, 0...} then u32.
// Invariant: an opened shard is whole: header, lengths and file sizes agree.
// Threading: const methods from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/status.h"
#include "worker/data/mapped_file.h"

namespace paceline {

enum class ShardFormat { kMegatron, kLlmC };
const char* Name(ShardFormat format);  // "megatron", "llm.c"

// Megatron's codes. Its float64 (6) and float32 (7) hold no tokens and are refused.
enum class TokenType : std::uint8_t {
  kU8 = 1,
  kI8 = 2,
  kI16 = 3,
  kI32 = 4,
  kI64 = 5,
  kU16 = 8,
  kU32 = 100 /* llm.c only */
};
const char* Name(TokenType type);  // "u8", ...
std::int64_t BytesOf(TokenType type);

inline constexpr char kMegatronMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
inline constexpr std::int64_t kMegatronHeaderBytes = 9 + 8 + 1 + 8 + 8;

class Shard {
 public:
  // `path` is the .bin. kNotFound, kInvalidArgument: names the file and what is wrong with it.
  static absl::StatusOr<Shard> Open(const std::string& path, ShardFormat format);

  const std::string& path() const { return path_; }
  ShardFormat format() const { return format_; }
  TokenType type() const { return type_; }
  std::int64_t tokens() const { return tokens_; }
  std::int64_t documents() const { return documents_; }  // llm.c does not record them: 0
  std::int64_t bytes() const { return static_cast<std::int64_t>(file_.bytes().size()); }
  std::int64_t index_bytes() const { return index_bytes_; }

  // Converts tokens [begin, begin + out.size()), which must lie inside. kInvalidArgument: a token
  // outside [0, vocab_size); file, position, token and vocab_size are named.
  absl::Status Read(std::int64_t begin, std::int64_t vocab_size, std::span<std::int32_t> out) const;
  void WillNeed(std::int64_t begin, std::int64_t count) const;

 private:
  Shard() = default;
  absl::Status ParseMegatron();
  absl::Status ParseLlmC();

  std::string path_;
  ShardFormat format_ = ShardFormat::kMegatron;
  TokenType type_ = TokenType::kU16;
  std::int64_t tokens_ = 0;
  std::int64_t documents_ = 0;
  std::int64_t data_begin_ = 0;  // byte of the first token
  std::int64_t index_bytes_ = 0;
  MappedFile file_;
};

// "x.bin" -> "x.idx".
std::string IndexPathOf(const std::string& bin_path);

}  // namespace paceline
