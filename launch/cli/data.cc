#include "launch/cli/data.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status.h"
#include "launch/cli/format.h"
#include "worker/data/corpus.h"
#include "worker/data/tokenizer.h"

namespace paceline::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kScanMax = std::int64_t{1} << 28;
constexpr std::int64_t kScanBlock = 1 << 20;
constexpr std::int64_t kCountedVocabMax = 1 << 20;  // beyond it no frequencies are kept
constexpr std::int64_t kPreviewTokens = 64;

void PrintJson(const Json& json) {
  // Previews may end amid a character.
  std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << std::endl;
}

Json PreparedJson(const PreparedCorpus& corpus) {
  return {{"folder", corpus.folder},
          {"tokens", corpus.manifest.tokens},
          {"documents", corpus.manifest.documents},
          {"shards", corpus.manifest.shards.size()},
          {"unigram_entropy_nats", corpus.unigram_entropy}};
}

void PrintPrepared(const PreparedCorpus& corpus) {
  const std::size_t shards = corpus.manifest.shards.size();
  absl::PrintF("%s: %d tokens in %d %s, unigram entropy %.4f nats a token\n", corpus.folder,
               corpus.manifest.tokens, shards, shards == 1 ? "shard" : "shards",
               corpus.unigram_entropy);
}

// What reading the tokens tells.
struct Scan {
  std::int64_t tokens = 0;  // looked at
  std::int64_t max_token = 0;
  std::optional<double> unigram_entropy;
};

absl::StatusOr<Scan> ScanTokens(const Corpus& corpus, std::int64_t tokens) {
  Scan scan{.tokens = tokens};
  std::vector<std::int64_t> counts;
  std::vector<std::int32_t> block;
  // The manifest's vocabulary is a promise to check; without one any token that is none
  // (negative) is still found.
  const std::int64_t vocab_size = corpus.manifest().vocab_size > 0
                                      ? corpus.manifest().vocab_size
                                      : std::numeric_limits<std::int32_t>::max();
  for (std::int64_t begin = 0; begin < tokens; begin += kScanBlock) {
    block.resize(std::min(kScanBlock, tokens - begin));
    RETURN_IF_ERROR(corpus.Read(begin, vocab_size, block));
    const std::int64_t max = *std::max_element(block.begin(), block.end());
    scan.max_token = std::max(scan.max_token, max);
    if (scan.max_token >= kCountedVocabMax) continue;
    if (scan.max_token >= static_cast<std::int64_t>(counts.size())) counts.resize(max + 1);
    for (const std::int32_t token : block) ++counts[token];
  }
  if (scan.max_token < kCountedVocabMax) scan.unigram_entropy = EntropyOf(counts);
  return scan;
}

// The corpus's beginning, decoded; nullopt where nobody knows its tokenizer.
absl::StatusOr<std::optional<std::string>> DecodePreview(const Corpus& corpus,
                                                         const std::string& folder,
                                                         std::span<const std::int32_t> tokens) {
  if (corpus.manifest().tokenizer.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(corpus.manifest().tokenizer, folder));
  ASSIGN_OR_RETURN(std::string text, tokenizer->Decode(tokens));
  return text;
}

Json InspectJson(const Corpus& corpus, const DataInspectOptions& options, const Scan& scan,
                 const std::vector<std::int32_t>& first, const std::optional<std::string>& text) {
  const CorpusManifest& manifest = corpus.manifest();
  Json shards = Json::array();
  for (const ShardEntry& shard : manifest.shards) {
    shards.push_back({{"file", shard.file},
                      {"tokens", shard.tokens},
                      {"documents", shard.documents},
                      {"bytes", shard.bytes},
                      {"sha256", shard.sha256},
                      {"site", shard.site}});
  }
  Json json = {{"path", options.path},
               {"format", manifest.format},
               {"tokens", corpus.tokens()},
               {"documents", manifest.documents},
               {"vocab_size", manifest.vocab_size},
               {"tokenizer", manifest.tokenizer},
               {"source", manifest.source},
               {"licence", manifest.licence},
               {"digest", corpus.digest()},
               {"verified", options.verify},
               {"scanned_tokens", scan.tokens},
               {"max_token", scan.max_token},
               {"shards", std::move(shards)},
               {"first_tokens", first}};
  if (scan.unigram_entropy) json["unigram_entropy_nats"] = *scan.unigram_entropy;
  if (options.sequence_length > 0) {
    json["sequence_length"] = options.sequence_length;
    json["samples"] = corpus.Samples(options.sequence_length);
  }
  if (text) json["first_text"] = *text;
  return json;
}

void PrintInspected(const Corpus& corpus, const DataInspectOptions& options, const Scan& scan,
                    const std::vector<std::int32_t>& first,
                    const std::optional<std::string>& text) {
  const CorpusManifest& manifest = corpus.manifest();
  const auto line = [](const char* name, const std::string& value) {
    absl::PrintF("%-12s%s\n", name, value);
  };
  const bool has_manifest = !manifest.shards.empty() && !manifest.shards[0].sha256.empty();
  line("corpus", options.path);
  line("format", manifest.format);
  line("tokens", absl::StrCat(corpus.tokens()));
  if (manifest.documents > 0) line("documents", absl::StrCat(manifest.documents));
  std::int64_t bytes = 0;
  for (const ShardEntry& shard : manifest.shards) bytes += shard.bytes;
  line("shards",
       absl::StrCat(manifest.shards.size(), ", ", FormatBytes(static_cast<double>(bytes))));
  if (manifest.vocab_size > 0) line("vocabulary", absl::StrCat(manifest.vocab_size));
  const std::string looked_at =
      scan.tokens == corpus.tokens() ? "" : absl::StrCat(" (of the first ", scan.tokens, ")");
  line("max token", absl::StrCat(scan.max_token, looked_at));
  if (scan.unigram_entropy) {
    line("entropy",
         absl::StrFormat("%.4f nats a token, unigram%s", *scan.unigram_entropy, looked_at));
  }
  if (!manifest.tokenizer.empty()) line("tokenizer", manifest.tokenizer);
  if (!manifest.source.empty()) line("source", manifest.source);
  if (!manifest.licence.empty()) line("licence", manifest.licence);
  line("digest", corpus.digest());
  line("verified", !options.verify ? "no; --verify reads all of it"
                   : has_manifest  ? "yes: every file has the manifest's sha256"
                                   : "every token was read; without a manifest there is no sha256");
  if (options.sequence_length > 0) {
    line("samples", absl::StrCat(corpus.Samples(options.sequence_length), " of ",
                                 options.sequence_length, " tokens"));
  }
  line("begins", text ? Json(*text).dump(-1, ' ', false, Json::error_handler_t::replace)
                      : Json(first).dump());
}

}  // namespace

absl::Status RunDataPrepare(const DataPrepareOptions& options) {
  ASSIGN_OR_RETURN(const PrepareReport report, PrepareCorpus(options.prepare));
  if (options.json) {
    Json json = {{"output", options.prepare.output},
                 {"tokenizer", report.train.manifest.tokenizer},
                 {"vocab_size", report.train.manifest.vocab_size},
                 {"text_bytes", report.text_bytes},
                 {"train", PreparedJson(report.train)}};
    if (!report.valid.folder.empty()) json["valid"] = PreparedJson(report.valid);
    PrintJson(json);
    return absl::OkStatus();
  }
  absl::PrintF("%s of text, tokenizer %s, vocabulary of %d\n",
               FormatBytes(static_cast<double>(report.text_bytes)), options.prepare.tokenizer,
               report.train.manifest.vocab_size);
  PrintPrepared(report.train);
  if (!report.valid.folder.empty()) PrintPrepared(report.valid);
  return absl::OkStatus();
}

absl::Status RunDataInspect(const DataInspectOptions& options) {
  if (options.sequence_length < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sequence-length ", options.sequence_length, ": it must be 1 or more"));
  }
  ASSIGN_OR_RETURN(const auto corpus, Corpus::Open(options.path));
  if (options.verify) RETURN_IF_ERROR(corpus->VerifyDigests());
  const std::int64_t tokens =
      options.verify ? corpus->tokens() : std::min(corpus->tokens(), kScanMax);
  ASSIGN_OR_RETURN(const Scan scan, ScanTokens(*corpus, tokens));
  std::vector<std::int32_t> first(std::min(kPreviewTokens, tokens));
  RETURN_IF_ERROR(corpus->Read(0, scan.max_token + 1, first));
  ASSIGN_OR_RETURN(const auto text, DecodePreview(*corpus, options.path, first));
  if (options.json) {
    PrintJson(InspectJson(*corpus, options, scan, first, text));
  } else {
    PrintInspected(*corpus, options, scan, first, text);
  }
  return absl::OkStatus();
}

}  // namespace paceline::cli
