#include "coordinator/core/limits.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace paceline::core {

absl::Status CheckName(const char* field, const std::string& value, bool may_be_empty) {
  if (value.empty() && may_be_empty) return absl::OkStatus();
  const bool fits = !value.empty() && value.size() <= kMaxNameBytes && value != "." &&
                    value != ".." && std::all_of(value.begin(), value.end(), [](char c) {
                      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' ||
                             c == '_' || c == '.';
                    });
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " = \"", Cut(value, kMaxNameBytes),
                                                 "\": give 1 to ", kMaxNameBytes,
                                                 " letters, digits, '-', '_' or '.'"));
}

absl::Status CheckLength(const char* field, const std::string& value, std::size_t bytes_max) {
  if (value.size() <= bytes_max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", value.size(), " bytes; at most ", bytes_max, " are taken"));
}

std::string Cut(const std::string& text, std::size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  std::size_t end = bytes_max > 3 ? bytes_max - 3 : 0;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

}  // namespace paceline::core
