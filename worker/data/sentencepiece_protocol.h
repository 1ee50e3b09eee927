// What paceline-sentencepiece and its parent say to each other over a socket. The library runs in
// a process of its own because Debian's carries an older protobuf inside, under the names that
// gRPC's protobuf has: in one process they would call into each other.
//   Child, at start:  Reply with {i32 vocab_size, i32 end of document or -1}.
//   Parent:           Request with text (kEncode) or i32 tokens (kDecode).
//   Child:            Reply with i32 tokens or text; at an error with its text.
// The child ends when the socket is closed.
// Invariant: no payload is longer than kPayloadMax. Plain C++ without abseil, whose string_view the
// library's header defines anew.
// Threading: plain values.
#pragma once

#include <cstddef>
#include <cstdint>

namespace paceline {

enum class SentencePieceOp : std::uint32_t { kEncode = 1, kDecode = 2 };
enum class SentencePieceStatus : std::uint32_t { kOk = 0, kError = 1 };

// Followed by `bytes` of payload. `code` is a SentencePieceOp or a SentencePieceStatus.
struct SentencePieceFrame {
  std::uint32_t code = 0;
  std::uint32_t bytes = 0;
};

// A text's tokens take at most 4 bytes for each of its bytes, and a few more.
inline constexpr std::size_t kSentencePiecePayloadMax = std::size_t{320} << 20;

}  // namespace paceline
