#include "worker/data/corpus_manifest.h"

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "worker/data/mapped_file.h"
#include "worker/data/tokenizer.h"

namespace paceline {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kManifestBytesMax = 256 << 20;

// Takes typed fields from one JSON object; the first problem is kept and ends the parse.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  void Count(const char* key, bool required, std::int64_t& target) {
    const Json* value = Find(key, required);
    if (value == nullptr) return;
    if (!value->is_number_integer() ||
        (value->is_number_unsigned()
             ? value->get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()
             : value->get<std::int64_t>() < 0)) {
      return Fail(key, "must be an integer of 0 or more");
    }
    target = value->get<std::int64_t>();
  }

  void Text(const char* key, bool required, std::string& target) {
    const Json* value = Find(key, required);
    if (value == nullptr) return;
    if (!value->is_string()) return Fail(key, "must be a string");
    target = value->get<std::string>();
  }

  void Sha256(const char* key, bool required, std::string& target) {
    Text(key, required, target);
    if (!status_.ok() || (target.empty() && !required)) return;
    if (target.size() != 64 || target.find_first_not_of("0123456789abcdef") != std::string::npos) {
      Fail(key, "must be 64 lower-case hex digits");
    }
  }

  void Fail(const char* key, const std::string& what) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": \"", key, "\" ", what));
    }
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json* Find(const char* key, bool required) {
    const auto found = object_.find(key);
    if (found != object_.end()) return &*found;
    if (required) Fail(key, "is missing");
    return nullptr;
  }

  const Json& object_;
  std::string where_;
  absl::Status status_;
};

// A manifest comes from outside: its names must not lead out of its folder.
bool StaysInside(const std::string& file) {
  const std::filesystem::path path(file);
  if (file.empty() || path.is_absolute()) return false;
  for (const auto& part : path) {
    if (part == "..") return false;
  }
  return true;
}

absl::StatusOr<ShardEntry> ParseShard(const Json& object, const std::string& where, bool megatron) {
  if (!object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": must be an object"));
  }
  ShardEntry shard;
  Fields fields(object, where);
  fields.Text("file", true, shard.file);
  if (!StaysInside(shard.file) || !shard.file.ends_with(".bin")) {
    fields.Fail("file", absl::StrCat("is \"", shard.file,
                                     "\"; it must be the name of a .bin inside the folder"));
  }
  fields.Count("tokens", true, shard.tokens);
  fields.Count("documents", false, shard.documents);
  fields.Count("bytes", true, shard.bytes);
  fields.Sha256("sha256", true, shard.sha256);
  fields.Count("index_bytes", megatron, shard.index_bytes);
  fields.Sha256("index_sha256", megatron, shard.index_sha256);
  fields.Text("site", false, shard.site);
  RETURN_IF_ERROR(fields.status());
  return shard;
}

}  // namespace

std::string ToJson(const CorpusManifest& manifest) {
  Json shards = Json::array();
  for (const ShardEntry& shard : manifest.shards) {
    Json entry = {{"file", shard.file},
                  {"tokens", shard.tokens},
                  {"documents", shard.documents},
                  {"bytes", shard.bytes},
                  {"sha256", shard.sha256}};
    if (!shard.index_sha256.empty()) {
      entry["index_bytes"] = shard.index_bytes;
      entry["index_sha256"] = shard.index_sha256;
    }
    entry["site"] = shard.site;
    shards.push_back(std::move(entry));
  }
  const Json json = {{"version", kCorpusManifestVersion}, {"format", manifest.format},
                     {"vocab_size", manifest.vocab_size}, {"tokenizer", manifest.tokenizer},
                     {"source", manifest.source},         {"licence", manifest.licence},
                     {"tokens", manifest.tokens},         {"documents", manifest.documents},
                     {"shards", std::move(shards)}};
  // File names need not be UTF-8; dump() would throw at one that is not.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<CorpusManifest> ParseCorpusManifest(const std::string& text,
                                                   const std::string& path) {
  const Json json = Json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  Fields fields(json, path);
  std::int64_t version = 0;
  fields.Count("version", true, version);
  RETURN_IF_ERROR(fields.status());
  if (version > kCorpusManifestVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": version ", version,
                                                      " was written by a newer Paceline; this one ",
                                                      "reads up to ", kCorpusManifestVersion));
  }
  if (version < 1) fields.Fail("version", "must be 1");
  CorpusManifest manifest;
  fields.Text("format", true, manifest.format);
  if (manifest.format != "megatron" && manifest.format != "llm.c") {
    fields.Fail("format",
                absl::StrCat("is \"", manifest.format, "\"; it must be \"megatron\" or \"llm.c\""));
  }
  fields.Count("vocab_size", true, manifest.vocab_size);
  fields.Text("tokenizer", false, manifest.tokenizer);
  if (const std::string file = SentencePieceFile(manifest.tokenizer);
      !file.empty() && !StaysInside(file)) {
    fields.Fail("tokenizer", absl::StrCat("is \"", manifest.tokenizer,
                                          "\"; its file must be inside the folder"));
  }
  fields.Text("source", false, manifest.source);
  fields.Text("licence", false, manifest.licence);
  fields.Count("tokens", true, manifest.tokens);
  fields.Count("documents", false, manifest.documents);
  const auto shards = json.find("shards");
  if (shards == json.end() || !shards->is_array()) fields.Fail("shards", "must be an array");
  RETURN_IF_ERROR(fields.status());
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < shards->size(); ++i) {
    ASSIGN_OR_RETURN(ShardEntry shard,
                     ParseShard((*shards)[i], absl::StrCat(path, ": shards[", i, "]"),
                                manifest.format == "megatron"));
    if (__builtin_add_overflow(tokens, shard.tokens, &tokens)) tokens = -1;
    manifest.shards.push_back(std::move(shard));
  }
  if (tokens != manifest.tokens) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": \"tokens\" is ", manifest.tokens,
                                                   ", but its shards sum to ", tokens));
  }
  return manifest;
}

absl::StatusOr<CorpusManifest> LoadCorpusManifest(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / kCorpusManifestFile).string();
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  if (file.bytes().size() > kManifestBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", file.bytes().size(), " bytes; a manifest has at most ", kManifestBytesMax));
  }
  return ParseCorpusManifest(
      std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()), path);
}

}  // namespace paceline
