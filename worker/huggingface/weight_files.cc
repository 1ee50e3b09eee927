#include "worker/huggingface/weight_files.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace paceline::huggingface {
namespace {

using nlohmann::json;

constexpr std::int64_t kIndexBytesMax = std::int64_t{1} << 28;
constexpr std::size_t kFilesMax = 4096;
constexpr std::size_t kTensorsMax = std::size_t{1} << 22;
constexpr std::int64_t kPieceElements = 1 << 20;

float FromHalf(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f;
  const auto fraction = static_cast<float>(bits & 0x3ff);
  float value = 0;
  if (exponent == 0) {
    value = std::ldexp(fraction, -24);
  } else if (exponent == 0x1f) {
    value = fraction == 0 ? INFINITY : NAN;
  } else {
    value = std::ldexp(fraction + 1024, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

float FromBFloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// `raw`: values of `dtype`, as they lie in the file.
void Widen(const std::string& dtype, const std::vector<std::byte>& raw, std::span<float> values) {
  if (dtype == "F32") {
    std::memcpy(values.data(), raw.data(), values.size_bytes());
    return;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, raw.data() + i * sizeof(bits), sizeof(bits));
    values[i] = dtype == "BF16" ? FromBFloat16(bits) : FromHalf(bits);
  }
}

// The files that an index names, each once, in the order of their names.
absl::StatusOr<std::set<std::string>> FilesOf(const json& index, const std::string& path) {
  const auto bad = [&path](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return bad("weight_map is missing or no object");
  }
  std::set<std::string> files;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string() || !IsPartFileName(file.get<std::string>())) {
      return bad("weight_map \"" + tensor + "\" is not a plain file name");
    }
    files.insert(file.get<std::string>());
    if (files.size() > kFilesMax) return bad(absl::StrCat("names more than ", kFilesMax, " files"));
  }
  return files;
}

absl::Status NoWeights(const std::string& folder) {
  return absl::NotFoundError(folder +
                             ": has neither model.safetensors nor model.safetensors.index.json; "
                             "weights in other formats (pickle, GGUF) are not read");
}

}  // namespace

absl::StatusOr<WeightFiles> WeightFiles::Open(const std::string& folder) {
  WeightFiles weights;
  const std::string index_path = folder + "/model.safetensors.index.json";
  const absl::StatusOr<std::string> text = ReadFile(index_path, kIndexBytesMax);
  if (absl::IsNotFound(text.status())) {
    const absl::Status added = weights.AddFile(folder + "/model.safetensors");
    if (absl::IsNotFound(added)) return NoWeights(folder);
    RETURN_IF_ERROR(added);
    return weights;
  }
  if (absl::IsResourceExhausted(text.status())) {
    return absl::InvalidArgumentError(index_path + ": is larger than 256 MiB, so no index");
  }
  RETURN_IF_ERROR(text.status());
  const json index = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  ASSIGN_OR_RETURN(const std::set<std::string> files, FilesOf(index, index_path));
  for (const std::string& file : files) {
    const absl::Status added = weights.AddFile(folder + "/" + file);
    if (absl::IsNotFound(added)) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, "/", file, ": is missing, and ", index_path, " names it"));
    }
    RETURN_IF_ERROR(added);
  }
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    const auto found = weights.file_of_.find(tensor);
    const std::string path = absl::StrCat(folder, "/", file.get<std::string>());
    if (found == weights.file_of_.end() || weights.files_[found->second].path() != path) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": has no tensor \"", tensor, "\", which ", index_path, " names"));
    }
  }
  return weights;
}

absl::Status WeightFiles::AddFile(const std::string& path) {
  // The file is what the user brought: what is wrong with it is bad input.
  const auto bad = [&path](const absl::Status& status) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::string(status.message())));
  };
  ASSIGN_OR_RETURN(OpenFile file, OpenFile::ForReading(path));
  ASSIGN_OR_RETURN(const std::int64_t bytes, file.Size());
  std::string start(static_cast<std::size_t>(std::min<std::int64_t>(bytes, 8)), '\0');
  RETURN_IF_ERROR(file.ReadAt(0, start.data(), std::ssize(start)));
  const absl::StatusOr<std::int64_t> header_bytes = SafetensorsHeaderBytes(start, bytes);
  if (!header_bytes.ok()) return bad(header_bytes.status());
  start.resize(static_cast<std::size_t>(*header_bytes));
  RETURN_IF_ERROR(file.ReadAt(0, start.data(), std::ssize(start)));
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(start, bytes);
  if (!header.ok()) return bad(header.status());
  for (SafetensorsTensor& tensor : header->tensors) {
    const std::string name = tensor.name;
    if (!tensors_.emplace(name, std::move(tensor)).second) {
      return bad(absl::InvalidArgumentError("tensor \"" + name + "\" is in another file too"));
    }
    file_of_[name] = files_.size();
  }
  if (tensors_.size() > kTensorsMax) {
    return bad(absl::InvalidArgumentError(absl::StrCat("more than ", kTensorsMax, " tensors")));
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status WeightFiles::Read(
    const std::string& name,
    const std::function<absl::Status(std::span<const float>)>& take) const {
  const SafetensorsTensor& tensor = tensors_.at(name);
  const OpenFile& file = files_[file_of_.at(name)];
  if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor \"", name, "\" is ",
                                                   tensor.dtype, "; F32, F16 and BF16 are read"));
  }
  const std::int64_t width = DtypeBytes(tensor.dtype);
  const std::int64_t elements = tensor.bytes / width;
  std::vector<std::byte> raw;
  std::vector<float> values;
  for (std::int64_t begin = 0; begin < elements; begin += kPieceElements) {
    const std::int64_t count = std::min(kPieceElements, elements - begin);
    raw.resize(static_cast<std::size_t>(count * width));
    values.resize(static_cast<std::size_t>(count));
    RETURN_IF_ERROR(file.ReadAt(tensor.offset + begin * width, raw.data(), count * width));
    Widen(tensor.dtype, raw, values);
    RETURN_IF_ERROR(take(values));
  }
  return absl::OkStatus();
}

std::uint16_t BFloat16Of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  const std::uint32_t round = 0x7fff + (bits >> 16 & 1);
  return static_cast<std::uint16_t>((bits + round) >> 16);
}

}  // namespace paceline::huggingface
