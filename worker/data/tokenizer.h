// Text to tokens and back. Two tokenizers: "bytes" (a token is a byte of the UTF-8 text) and
// "sentencepiece:FILE" (a SentencePiece model).
// Invariant: ids are in [0, vocab_size).
// Threading: one Tokenizer belongs to one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace paceline {

class Tokenizer {
 public:
  // The longest text or row of tokens, in bytes, that one call takes.
  static constexpr std::size_t kBytesMax = 64 << 20;

  virtual ~Tokenizer() = default;

  virtual std::int64_t vocab_size() const = 0;
  // The token to put behind each document; none for bytes.
  virtual std::optional<std::int32_t> end_of_document() const = 0;
  virtual absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text) = 0;
  // Bytes decode to what they are, also where that is no valid UTF-8. kInvalidArgument: an id
  // outside the vocabulary.
  virtual absl::StatusOr<std::string> Decode(std::span<const std::int32_t> tokens) = 0;
};

std::unique_ptr<Tokenizer> MakeBytesTokenizer();

// The tokenizer that a manifest or the command line names. A relative FILE resolves against
// `folder`. `program_folder` is where paceline-sentencepiece lies; "": beside this program.
// kInvalidArgument: an unknown name, or no SentencePiece model. kNotFound: no such file.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& name,
                                                         const std::string& folder,
                                                         const std::string& program_folder = "");

// FILE of "sentencepiece:FILE"; "": another tokenizer.
std::string SentencePieceFile(const std::string& name);

}  // namespace paceline
