#include "common/settings_reader.h"

#include <charconv>
#include <exception>
#include <filesystem>
#include <fstream>
#include <utility>

#include "common/status.h"

namespace paceline::run_file {
namespace {

constexpr std::size_t kMaxFileBytes = 1 << 20;

bool IsIntegerBeyond64Bits(const std::string& text) {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  return error == std::errc::result_out_of_range && stopped == end;
}

int LineOf(const toml::source_region& source) { return static_cast<int>(source.begin.line); }

}  // namespace

SettingsReader::SettingsReader(const std::string& file_name, std::string folder,
                               std::vector<Field> fields)
    : findings_(file_name), folder_(std::move(folder)), fields_(std::move(fields)) {
  for (const Field& field : fields_) {
    keys_[std::string(field.section)].emplace_back(field.key);
  }
}

void SettingsReader::TakeFile(const toml::table& document) {
  for (auto&& [name, node] : document) {
    const std::string section(name.str());
    if (keys_.count(section) == 0) {
      findings_.ReportAtLine(LineOf(name.source()), node.is_table() ? "[" + section + "]" : section,
                             UnknownSection(section, node.is_table()));
    } else if (const toml::table* table = node.as_table()) {
      TakeSection(section, *table, LineOf(name.source()));
    } else {
      findings_.ReportAtLine(LineOf(name.source()), section + " = " + ShownValue(node),
                             "must be a section: [" + section + "]");
    }
  }
}

void SettingsReader::TakeOverride(const Override& given) {
  const std::size_t equals = given.text.find('=');
  if (equals == std::string::npos) {
    findings_.ReportOverride(given.text, "must be section.key=value, as train.steps=100");
    return;
  }
  const std::string path = given.text.substr(0, equals);
  const std::size_t dot = path.find('.');
  const std::string section = path.substr(0, dot);
  const std::string key = dot == std::string::npos ? "" : path.substr(dot + 1);
  if (dot == std::string::npos) {
    const std::string home = SectionThatHas(section);
    findings_.ReportOverride(
        given.text, "must be section.key=value" +
                        (home.empty() ? "" : "; did you mean " + home + "." + section + "?"));
  } else if (keys_.count(section) == 0) {
    findings_.ReportOverride(given.text, UnknownSection(section, /*is_table=*/true));
  } else if (!Knows(section, key)) {
    findings_.ReportOverride(given.text, UnknownKey(section, key, /*by_override=*/true));
  } else {
    TakeOverrideValue(given, section, key, given.text.substr(equals + 1));
  }
}

void SettingsReader::ReadValues() {
  for (const Field& field : fields_) {
    const auto given = given_.find({std::string(field.section), std::string(field.key)});
    if (given != given_.end()) {
      ReadValue(field, given->second, findings_);
    } else if (field.required) {
      findings_.Report(field.section, field.key,
                       "is missing; it must be " + AllowedText(field.rule));
    }
  }
}

bool SettingsReader::WasGiven(const std::string& section, const std::string& key) const {
  return given_.count({section, key}) > 0;
}

void SettingsReader::TakeSection(const std::string& section, const toml::table& table, int line) {
  findings_.SetSectionLine(section, line);
  for (auto&& [name, node] : table) {
    const std::string key(name.str());
    const int key_line = LineOf(name.source());
    if (!Knows(section, key)) {
      findings_.ReportAtLine(key_line, "[" + section + "] " + key + " = " + ShownValue(node),
                             UnknownKey(section, key, /*by_override=*/false));
      continue;
    }
    findings_.SetOrigin(section, key, {key_line, ShownValue(node)});
    given_[{section, key}] = {&node, folder_, /*by_override=*/false};
  }
}

void SettingsReader::TakeOverrideValue(const Override& given, const std::string& section,
                                       const std::string& key, const std::string& value) {
  if (value.size() > kMaxFileBytes || value.find_first_of("\n\r") != std::string::npos) {
    findings_.ReportOverride(section + "." + key, "the value must be one line");
    return;
  }
  absl::StatusOr<std::string> folder = AbsoluteFolder(given.base_folder);
  if (!folder.ok()) {
    findings_.ReportOverride(given.text, std::string(folder.status().message()));
    return;
  }
  toml::table holder;
  try {
    holder = toml::parse("value = " + value);
  } catch (const std::exception&) {
    // Not TOML. What looks as if it was meant as TOML is told so; else it is a bare word.
    if (!value.empty() && std::string("\"'[{").find(value[0]) != std::string::npos) {
      findings_.ReportOverride(given.text, "the value is not valid TOML");
      return;
    }
    if (IsIntegerBeyond64Bits(value)) {
      findings_.ReportOverride(given.text, "is an integer beyond 64 bits");
      return;
    }
  }
  if (holder.size() != 1 || holder.begin()->second.is_date() ||
      holder.begin()->second.is_date_time() || holder.begin()->second.is_time()) {
    holder.clear();
    holder.insert("value", value);
  }
  override_values_.push_back(std::make_unique<toml::table>(std::move(holder)));
  const toml::node& node = override_values_.back()->begin()->second;
  findings_.SetOrigin(section, key, {/*line=*/0, value});
  given_[{section, key}] = {&node, *folder, /*by_override=*/true};
}

bool SettingsReader::Knows(const std::string& section, const std::string& key) const {
  for (const std::string& known : keys_.at(section)) {
    if (known == key) return true;
  }
  return false;
}

std::string SettingsReader::SectionThatHas(const std::string& key) const {
  for (const auto& [section, keys] : keys_) {
    if (Knows(section, key)) return section;
  }
  return "";
}

std::string SettingsReader::UnknownSection(const std::string& section, bool is_table) const {
  std::vector<std::string> names;
  std::string all;
  for (const auto& [name, keys] : keys_) {
    names.push_back(name);
    all += (all.empty() ? "" : ", ") + name;
  }
  if (!is_table) {
    const std::string home = SectionThatHas(section);
    if (!home.empty())
      return "stands outside a section; did you mean [" + home + "] " + section + "?";
  }
  const std::string nearest = Nearest(section, names);
  return "there is no such section" +
         (nearest.empty() ? "; there are " + all : "; did you mean [" + nearest + "]?");
}

std::string SettingsReader::UnknownKey(const std::string& section, const std::string& key,
                                       bool by_override) const {
  const std::string nearest = Nearest(key, keys_.at(section));
  const std::string home = SectionThatHas(key);
  if (!home.empty()) {
    return "there is no such key here; did you mean " +
           (by_override ? home + "." : "[" + home + "] ") + key + "?";
  }
  if (!nearest.empty()) {
    return "there is no such key; did you mean " + (by_override ? section + "." : "") + nearest +
           "?";
  }
  std::string all;
  for (const std::string& known : keys_.at(section)) all += (all.empty() ? "" : ", ") + known;
  return "there is no such key; [" + section + "] has " + all;
}

absl::StatusOr<toml::table> ParseToml(const std::string& text, const std::string& file_name,
                                      std::string_view kind) {
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(file_name + ": is larger than 1 MiB, so no " +
                                      std::string(kind));
  }
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(file_name + ":" + std::to_string(LineOf(error.source())) +
                                      ": not valid TOML: " + std::string(error.description()));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(file_name + ":1: not valid TOML: " + error.what());
  }
}

absl::StatusOr<std::string> ReadSettingsText(const std::string& path, std::string_view kind) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(path + ": is a folder; a " + std::string(kind) +
                                      " (TOML) is needed");
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return absl::NotFoundError(path + ": there is no such " + std::string(kind) +
                               ", or it cannot be read");
  }
  std::string text(kMaxFileBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return absl::UnavailableError(path + ": cannot be read");
  text.resize(static_cast<std::size_t>(in.gcount()));
  return text;
}

absl::StatusOr<std::string> AbsoluteFolder(const std::string& folder) {
  std::error_code error;
  const std::filesystem::path absolute =
      std::filesystem::absolute(folder.empty() ? "." : folder, error);
  if (error) {
    return absl::NotFoundError("cannot resolve the folder \"" + folder + "\": " + error.message());
  }
  return absolute.lexically_normal().string();
}

}  // namespace paceline::run_file
