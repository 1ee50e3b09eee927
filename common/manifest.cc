#include "common/manifest.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "common/xxh128.h"

namespace paceline {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// Between the content and the digest of it; the last one in the text counts. The content itself
// cannot end like this, because its last value is the list of parts.
constexpr char kDigestKey[] = ",\n\"digest\": \"";
constexpr char kEnd[] = "\"\n}\n";
constexpr std::size_t kDigestDigits = 32;

ordered_json SliceToJson(const TensorSliceInfo& slice) {
  return {{"name", slice.name},   {"dtype", slice.dtype}, {"global_shape", slice.global_shape},
          {"start", slice.start}, {"shape", slice.shape}, {"digest", slice.digest}};
}

// Everything before the digest: one line for a slice, so that people can read and compare it.
std::string Content(const Manifest& manifest) {
  const ordered_json head = {
      {"version", manifest.version},
      {"run_id", manifest.run_id},
      {"generation", manifest.generation},
      {"step", manifest.step},
      {"sample", manifest.sample},
      {"tokens", manifest.tokens},
      {"seed", manifest.seed},
      {"corpus_digest", manifest.corpus_digest},
      {"ledger_digest", manifest.ledger_digest},
      {"run_file", manifest.run_file},
  };
  // Text that is not UTF-8 (a path in a run file may be any bytes) is replaced, not refused.
  const auto dump = [](const ordered_json& value) {
    return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  };
  std::string text = "{\n";
  for (const auto& [key, value] : head.items()) {
    text += "\"" + key + "\": " + dump(value) + ",\n";
  }
  text += "\"parts\": [";
  const char* part_separator = "\n";
  for (const ManifestPart& part : manifest.parts) {
    text += part_separator;
    text += "{\"file\": " + dump(part.file) + ", \"bytes\": " + std::to_string(part.bytes) +
            ", \"slices\": [";
    const char* slice_separator = "\n";
    for (const TensorSliceInfo& slice : part.slices) {
      text += slice_separator + dump(SliceToJson(slice));
      slice_separator = ",\n";
    }
    text += "]}";
    part_separator = ",\n";
  }
  return text + "]";
}

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError("manifest: " + what +
                             "; it was torn or altered, so use an earlier checkpoint");
}

// Reads fields and keeps the first error.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Fail("", "an object");
  }

  std::string Text(const char* key) {
    const json* value = Find(key);
    if (value == nullptr || !value->is_string()) return Fail(key, "a text"), "";
    return value->get<std::string>();
  }

  std::int64_t Count(const char* key) {
    const json* value = Find(key);
    return value == nullptr ? 0 : CountOf(key, *value);
  }

  std::uint64_t Unsigned(const char* key) {
    const json* value = Find(key);
    if (value == nullptr || !value->is_number_unsigned()) return Fail(key, "an integer >= 0"), 0;
    return value->get<std::uint64_t>();
  }

  std::vector<std::int64_t> Counts(const char* key) {
    std::vector<std::int64_t> counts;
    for (const json& value : Array(key)) counts.push_back(CountOf(key, value));
    return counts;
  }

  const json& Array(const char* key) {
    static const json empty = json::array();
    const json* value = Find(key);
    if (value == nullptr || !value->is_array()) return Fail(key, "a list"), empty;
    return *value;
  }

  const absl::Status& status() const { return status_; }

 private:
  const json* Find(const char* key) {
    const auto found = object_.find(key);
    if (found == object_.end()) return Fail(key, "there"), nullptr;
    return &*found;
  }

  std::int64_t CountOf(const char* key, const json& value) {
    constexpr std::uint64_t kMax = std::numeric_limits<std::int64_t>::max();
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMax) {
      return Fail(key, "an integer from 0 to 2^63-1"), 0;
    }
    return value.get<std::int64_t>();
  }

  void Fail(const std::string& key, const std::string& want) {
    if (status_.ok()) status_ = Damaged(where_ + key + " is not " + want);
  }

  const json& object_;
  const std::string where_;
  absl::Status status_;
};

absl::StatusOr<TensorSliceInfo> ParseSlice(const json& object, const std::string& where) {
  Fields fields(object, where);
  TensorSliceInfo slice;
  slice.name = fields.Text("name");
  slice.dtype = fields.Text("dtype");
  slice.global_shape = fields.Counts("global_shape");
  slice.start = fields.Counts("start");
  slice.shape = fields.Counts("shape");
  slice.digest = fields.Text("digest");
  RETURN_IF_ERROR(fields.status());
  if (const auto bytes = BytesOf(slice); !bytes.ok()) {
    return Damaged(where + std::string(bytes.status().message()));
  }
  if (slice.digest.size() != kDigestDigits ||
      slice.digest.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return Damaged(where + "tensor \"" + slice.name + "\": digest \"" + slice.digest +
                   "\" is not 32 hex digits");
  }
  return slice;
}

absl::StatusOr<ManifestPart> ParsePart(const json& object, std::size_t index) {
  const std::string where = "parts[" + std::to_string(index) + "].";
  Fields fields(object, where);
  ManifestPart part;
  part.file = fields.Text("file");
  part.bytes = fields.Count("bytes");
  const json& slices = fields.Array("slices");
  RETURN_IF_ERROR(fields.status());
  if (!IsPartFileName(part.file)) {
    return Damaged(where + "file \"" + part.file + "\" is not a plain file name");
  }
  for (std::size_t i = 0; i < slices.size(); ++i) {
    ASSIGN_OR_RETURN(TensorSliceInfo slice,
                     ParseSlice(slices[i], where + "slices[" + std::to_string(i) + "]."));
    part.slices.push_back(std::move(slice));
  }
  return part;
}

}  // namespace

std::int64_t DtypeBytes(const std::string& dtype) {
  static constexpr std::pair<const char*, std::int64_t> kDtypes[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"I16", 2},
      {"I8", 1},  {"U64", 8}, {"U32", 4}, {"U16", 2},  {"U8", 1},  {"BOOL", 1}};
  for (const auto& [name, bytes] : kDtypes) {
    if (dtype == name) return bytes;
  }
  return 0;
}

absl::StatusOr<std::int64_t> BytesOf(const TensorSliceInfo& slice) {
  const auto wrong = [&slice](const std::string& what) {
    return absl::InvalidArgumentError("tensor \"" + slice.name + "\": " + what);
  };
  std::int64_t bytes = DtypeBytes(slice.dtype);
  if (bytes == 0) return wrong("dtype \"" + slice.dtype + "\" is not known");
  const std::size_t rank = slice.global_shape.size();
  if (slice.start.size() != rank || slice.shape.size() != rank) {
    return wrong("global_shape, start and shape differ in length");
  }
  std::int64_t global_bytes = bytes;
  for (std::size_t i = 0; i < rank; ++i) {
    const std::int64_t whole = slice.global_shape[i];
    const std::int64_t start = slice.start[i];
    const std::int64_t extent = slice.shape[i];
    if (whole < 0 || start < 0 || extent < 0 || start > whole || extent > whole - start) {
      return wrong("the slice lies outside of the tensor in dimension " + std::to_string(i));
    }
    if (__builtin_mul_overflow(global_bytes, whole, &global_bytes) ||
        __builtin_mul_overflow(bytes, extent, &bytes)) {
      return wrong("its size overflows");
    }
  }
  return bytes;
}

bool IsPartFileName(const std::string& file) {
  return !file.empty() && file.size() <= 255 && file[0] != '.' &&
         file.find('/') == std::string::npos && file.find('\0') == std::string::npos;
}

std::string ToJson(const Manifest& manifest) {
  std::string content = Content(manifest);
  const std::string digest = Xxh128Of(content);
  return content + kDigestKey + digest + kEnd;
}

std::string DigestOf(const Manifest& manifest) { return Xxh128Of(Content(manifest)); }

absl::StatusOr<Manifest> ParseManifest(const std::string& text) {
  const std::size_t key = text.rfind(kDigestKey);
  if (key == std::string::npos) return Damaged("it has no digest at its end");
  const std::string digest = Xxh128Of(std::string_view(text).substr(0, key));
  if (text.substr(key) != kDigestKey + digest + kEnd) {
    return Damaged("its digest is not that of its content, " + digest);
  }
  const json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return Damaged("it is not JSON");

  Fields fields(parsed, "");
  Manifest manifest;
  const std::int64_t version = fields.Count("version");
  RETURN_IF_ERROR(fields.status());
  if (version > kManifestVersion) {
    return absl::FailedPreconditionError("manifest: version " + std::to_string(version) +
                                         " was written by a newer Paceline; this "
                                         "one reads up to version " +
                                         std::to_string(kManifestVersion) +
                                         ", so use the newer one");
  }
  manifest.version = static_cast<int>(version);
  manifest.run_id = fields.Text("run_id");
  manifest.generation = fields.Unsigned("generation");
  manifest.step = fields.Count("step");
  manifest.sample = fields.Count("sample");
  manifest.tokens = fields.Count("tokens");
  manifest.seed = fields.Unsigned("seed");
  manifest.corpus_digest = fields.Text("corpus_digest");
  manifest.ledger_digest = fields.Text("ledger_digest");
  manifest.run_file = fields.Text("run_file");
  const json& parts = fields.Array("parts");
  RETURN_IF_ERROR(fields.status());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    ASSIGN_OR_RETURN(ManifestPart part, ParsePart(parts[i], i));
    manifest.parts.push_back(std::move(part));
  }
  return manifest;
}

}  // namespace paceline
