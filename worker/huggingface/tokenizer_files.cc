#include "worker/huggingface/tokenizer_files.h"

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/files.h"
#include "worker/data/tokenizer.h"

namespace paceline::huggingface {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kTokenizerBytesMax = 256 << 20;

std::string Utf8(int code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

// The tokenizers library names bytes by characters that can be printed: itself where it can be,
// else the next one from 256 on. Source: bytes_to_unicode of GPT-2's encoder.py.
std::vector<std::string> CharactersOfBytes() {
  std::vector<std::string> characters;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    characters.push_back(Utf8(prints ? byte : next++));
  }
  return characters;
}

std::vector<NamedFile> BytesFiles() {
  ordered_json vocabulary;
  for (const std::string& character : CharactersOfBytes()) {
    vocabulary[character] = vocabulary.size();
  }
  const ordered_json byte_level = {{"type", "ByteLevel"},
                                   {"add_prefix_space", false},
                                   {"trim_offsets", false},
                                   {"use_regex", false}};
  const ordered_json tokenizer = {{"version", "1.0"},
                                  {"truncation", nullptr},
                                  {"padding", nullptr},
                                  {"added_tokens", ordered_json::array()},
                                  {"normalizer", nullptr},
                                  {"pre_tokenizer", byte_level},
                                  {"post_processor", nullptr},
                                  {"decoder", byte_level},
                                  {"model",
                                   {{"type", "BPE"},
                                    {"dropout", nullptr},
                                    {"unk_token", nullptr},
                                    {"continuing_subword_prefix", nullptr},
                                    {"end_of_word_suffix", nullptr},
                                    {"fuse_unk", false},
                                    {"byte_fallback", false},
                                    {"vocab", vocabulary},
                                    {"merges", ordered_json::array()}}}};
  const ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                               {"clean_up_tokenization_spaces", false}};
  return {{"tokenizer.json", tokenizer.dump(2) + "\n"},
          {"tokenizer_config.json", config.dump(2) + "\n"}};
}

}  // namespace

absl::StatusOr<std::vector<NamedFile>> TokenizerFiles(const std::string& name,
                                                      const std::string& folder) {
  namespace fs = std::filesystem;
  if (name == "bytes") return BytesFiles();
  const std::string model = SentencePieceFile(name);
  const fs::path path = fs::path(folder) / (model.empty() ? name : model);
  absl::StatusOr<std::string> content = ReadFile(path.string(), kTokenizerBytesMax);
  if (!content.ok()) return Annotate(content.status(), "tokenizer \"" + name + "\"");
  const std::string file = model.empty() ? path.filename().string() : "tokenizer.model";
  return std::vector<NamedFile>{{file, *std::move(content)}};
}

}  // namespace paceline::huggingface
