#include "worker/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace paceline {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kAlignment = 64;
constexpr char kMetadataKey[] = "__metadata__";

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian");

absl::Status Bad(const std::string& what) {
  return absl::DataLossError("safetensors header: " + what);
}

// A list of integers from 0 to 2^63-1. False: `value` is none.
bool ReadCounts(const json& value, std::vector<std::int64_t>* counts) {
  if (!value.is_array()) return false;
  for (const json& entry : value) {
    if (!entry.is_number_unsigned()) return false;
    const auto count = entry.get<std::uint64_t>();
    if (count > INT64_MAX) return false;
    counts->push_back(static_cast<std::int64_t>(count));
  }
  return true;
}

absl::StatusOr<SafetensorsTensor> ParseTensor(const std::string& name, const json& value,
                                              std::int64_t data_begin, std::int64_t data_bytes) {
  const std::string who = "tensor \"" + name + "\": ";
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value["dtype"].is_string() || !value.contains("shape") || !value.contains("data_offsets")) {
    return Bad(who + "wants dtype, shape and data_offsets, and nothing else");
  }
  SafetensorsTensor tensor;
  tensor.name = name;
  tensor.dtype = value["dtype"].get<std::string>();
  std::vector<std::int64_t> offsets;
  if (!ReadCounts(value["shape"], &tensor.shape) || !ReadCounts(value["data_offsets"], &offsets) ||
      offsets.size() != 2) {
    return Bad(who + "shape and data_offsets want integers >= 0, data_offsets two of them");
  }
  TensorSliceInfo whole;
  whole.name = name;
  whole.dtype = tensor.dtype;
  whole.global_shape = whole.shape = tensor.shape;
  whole.start.assign(tensor.shape.size(), 0);
  const auto bytes = BytesOf(whole);
  if (!bytes.ok()) return Bad(std::string(bytes.status().message()));
  if (offsets[1] > data_bytes) return Bad(who + "data_offsets lie beyond the file's end");
  if (offsets[0] > offsets[1] || offsets[1] - offsets[0] != *bytes) {
    return Bad(who + "data_offsets do not match dtype and shape");
  }
  tensor.offset = data_begin + offsets[0];
  tensor.bytes = *bytes;
  return tensor;
}

absl::Status ParseMetadata(const json& value, std::map<std::string, std::string>* metadata) {
  if (!value.is_object()) return Bad("__metadata__ is not an object");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) return Bad("__metadata__ \"" + key + "\" is not a text");
    (*metadata)[key] = text.get<std::string>();
  }
  return absl::OkStatus();
}

// The data is laid out without holes and overlaps, from the header's end to the file's.
absl::Status CheckLayout(const SafetensorsHeader& header, std::int64_t file_bytes) {
  std::int64_t end = header.bytes;
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.offset != end) {
      return Bad("tensor \"" + tensor.name + "\" " +
                 (tensor.offset < end ? "overlaps the one before it" : "leaves a hole before it"));
    }
    end += tensor.bytes;
  }
  if (end != file_bytes) {
    return Bad("the tensors end at byte " + std::to_string(end) + " of " +
               std::to_string(file_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

std::string SafetensorsName(const TensorSliceInfo& slice) {
  if (slice.shape == slice.global_shape) return slice.name;
  std::string name = slice.name;
  for (std::size_t i = 0; i < slice.shape.size(); ++i) {
    name += (i == 0 ? "[" : ",") + std::to_string(slice.start[i]) + ":" +
            std::to_string(slice.start[i] + slice.shape[i]);
  }
  return name + "]";
}

absl::StatusOr<std::string> BuildSafetensorsHeader(std::span<const TensorSliceInfo> slices,
                                                   const std::string& format) {
  std::string text =
      "{" + json(kMetadataKey).dump() + ":" + json::object({{"format", format}}).dump();
  std::set<std::string> names = {kMetadataKey};
  std::int64_t end = 0;
  for (const TensorSliceInfo& slice : slices) {
    ASSIGN_OR_RETURN(const std::int64_t bytes, BytesOf(slice));
    const std::int64_t begin = end;
    if (__builtin_add_overflow(end, bytes, &end)) {
      return absl::InvalidArgumentError("tensor \"" + slice.name + "\": the file's size overflows");
    }
    const std::string name = SafetensorsName(slice);
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError("tensor \"" + name + "\" appears twice");
    }
    const ordered_json tensor = {
        {"dtype", slice.dtype}, {"shape", slice.shape}, {"data_offsets", {begin, end}}};
    text +=
        "," + json(name).dump(-1, ' ', false, json::error_handler_t::replace) + ":" + tensor.dump();
  }
  text += "}";
  text.resize(
      (kLengthBytes + text.size() + kAlignment - 1) / kAlignment * kAlignment - kLengthBytes, ' ');
  if (std::ssize(text) > kSafetensorsHeaderBytesMax) {
    return absl::InvalidArgumentError("the header of a safetensors file would have " +
                                      std::to_string(text.size()) + " bytes, more than " +
                                      std::to_string(kSafetensorsHeaderBytesMax));
  }
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), kLengthBytes) + text;
}

absl::StatusOr<std::int64_t> SafetensorsHeaderBytes(std::string_view start,
                                                    std::int64_t file_bytes) {
  if (start.size() < kLengthBytes || file_bytes < std::ssize(start)) {
    return Bad("the file ends before its header's length");
  }
  std::uint64_t length = 0;
  std::memcpy(&length, start.data(), kLengthBytes);
  if (length > static_cast<std::uint64_t>(kSafetensorsHeaderBytesMax) ||
      length > static_cast<std::uint64_t>(file_bytes) - kLengthBytes) {
    return Bad("a length of " + std::to_string(length) + " in a file of " +
               std::to_string(file_bytes) + " bytes");
  }
  return static_cast<std::int64_t>(kLengthBytes + length);
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view start,
                                                         std::int64_t file_bytes) {
  SafetensorsHeader header;
  ASSIGN_OR_RETURN(header.bytes, SafetensorsHeaderBytes(start.substr(0, kLengthBytes), file_bytes));
  if (std::ssize(start) < header.bytes) return Bad("it is not whole");
  const std::string_view text = start.substr(kLengthBytes, header.bytes - kLengthBytes);
  if (text.empty() || text[0] != '{') return Bad("it does not begin with '{'");
  const json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return Bad("it is not a JSON object");
  for (const auto& [name, value] : parsed.items()) {
    if (name == kMetadataKey) {
      RETURN_IF_ERROR(ParseMetadata(value, &header.metadata));
      continue;
    }
    ASSIGN_OR_RETURN(SafetensorsTensor tensor,
                     ParseTensor(name, value, header.bytes, file_bytes - header.bytes));
    header.tensors.push_back(std::move(tensor));
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  RETURN_IF_ERROR(CheckLayout(header, file_bytes));
  return header;
}

}  // namespace paceline
