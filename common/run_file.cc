#include "common/run_file.h"

#include <charconv>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <variant>

#include "common/run_file_findings.h"
#include "common/run_file_schema.h"
#include "common/run_file_values.h"
#include "common/status.h"
#include "common/toml.h"

namespace paceline {
namespace {

using run_file::Field;
using run_file::Findings;
using run_file::Given;
using run_file::ShownValue;

constexpr std::size_t kMaxFileBytes = 1 << 20;

bool IsIntegerBeyond64Bits(const std::string& text) {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  return error == std::errc::result_out_of_range && stopped == end;
}

int LineOf(const toml::source_region& source) { return static_cast<int>(source.begin.line); }

absl::StatusOr<std::string> AbsoluteFolder(const std::string& folder) {
  std::error_code error;
  const std::filesystem::path absolute =
      std::filesystem::absolute(folder.empty() ? "." : folder, error);
  if (error) {
    return absl::NotFoundError("cannot resolve the folder \"" + folder + "\": " + error.message());
  }
  return absolute.lexically_normal().string();
}

// Reads the file's and the command line's values into a RunFile, by the schema.
class Reader {
 public:
  Reader(const std::string& file_name, std::string folder)
      : findings_(file_name), folder_(std::move(folder)), fields_(run_file::FieldsOf(result_)) {
    for (const Field& field : fields_) {
      keys_[std::string(field.section)].emplace_back(field.key);
    }
  }

  void TakeFile(const toml::table& document) {
    for (auto&& [name, node] : document) {
      const std::string section(name.str());
      if (keys_.count(section) == 0) {
        findings_.ReportAtLine(LineOf(name.source()),
                               node.is_table() ? "[" + section + "]" : section,
                               UnknownSection(section, node.is_table()));
      } else if (const toml::table* table = node.as_table()) {
        TakeSection(section, *table, LineOf(name.source()));
      } else {
        findings_.ReportAtLine(LineOf(name.source()), section + " = " + ShownValue(node),
                               "must be a section: [" + section + "]");
      }
    }
  }

  void TakeOverride(const Override& given) {
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

  absl::StatusOr<RunFile> Finish() {
    for (const Field& field : fields_) {
      const auto given = given_.find({std::string(field.section), std::string(field.key)});
      if (given != given_.end()) {
        run_file::ReadValue(field, given->second, findings_);
      } else if (field.required) {
        findings_.Report(field.section, field.key,
                         "is missing; it must be " + run_file::AllowedText(field.rule));
      }
    }
    DeriveDefaults();
    run_file::CheckTogether(result_, findings_);
    RETURN_IF_ERROR(findings_.ToStatus());
    return std::move(result_);
  }

 private:
  void TakeSection(const std::string& section, const toml::table& table, int line) {
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

  void TakeOverrideValue(const Override& given, const std::string& section, const std::string& key,
                         const std::string& value) {
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

  bool Knows(const std::string& section, const std::string& key) const {
    for (const std::string& known : keys_.at(section)) {
      if (known == key) return true;
    }
    return false;
  }

  std::string SectionThatHas(const std::string& key) const {
    for (const auto& [section, keys] : keys_) {
      if (Knows(section, key)) return section;
    }
    return "";
  }

  std::string UnknownSection(const std::string& section, bool is_table) const {
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
    const std::string nearest = run_file::Nearest(section, names);
    return "there is no such section" +
           (nearest.empty() ? "; there are " + all : "; did you mean [" + nearest + "]?");
  }

  std::string UnknownKey(const std::string& section, const std::string& key,
                         bool by_override) const {
    const std::string nearest = run_file::Nearest(key, keys_.at(section));
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

  // Where the file is silent, Hugging Face's defaults.
  void DeriveDefaults() {
    ModelSection& model = result_.model;
    if (given_.count({"model", "num_key_value_heads"}) == 0) {
      model.num_key_value_heads = model.num_attention_heads;
    }
    if (given_.count({"model", "head_dim"}) == 0 && model.num_attention_heads > 0 &&
        model.hidden_size % model.num_attention_heads == 0) {
      const std::int64_t head_dim = model.hidden_size / model.num_attention_heads;
      model.head_dim = head_dim < 2 || head_dim > 4096 ? 0 : head_dim;
    }
  }

  Findings findings_;
  std::string folder_;
  RunFile result_;
  std::vector<Field> fields_;  // point into result_
  std::map<std::string, std::vector<std::string>> keys_;
  std::map<std::pair<std::string, std::string>, Given> given_;
  std::vector<std::unique_ptr<toml::table>> override_values_;  // keep Given::node alive
};

struct ValueText {
  std::string operator()(const std::int64_t* value) const { return std::to_string(*value); }
  std::string operator()(const std::uint64_t* value) const { return std::to_string(*value); }
  std::string operator()(const double* value) const { return run_file::RealText(*value); }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const std::string* value) const { return run_file::QuotedText(*value); }
  std::string operator()(const std::vector<DataSource>* value) const {
    if (value->size() == 1 && value->front().weight == 1.0) {
      return run_file::QuotedText(value->front().path);
    }
    std::string text = "[";
    for (const DataSource& source : *value) {
      if (text.size() > 1) text += ", ";
      text += "{path = " + run_file::QuotedText(source.path) +
              ", weight = " + run_file::RealText(source.weight) + "}";
    }
    return text + "]";
  }
};

}  // namespace

absl::StatusOr<RunFile> ParseRunFile(const std::string& text, const std::string& file_name,
                                     const std::string& folder,
                                     const std::vector<Override>& overrides) {
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(file_name + ": is larger than 1 MiB, so no run file");
  }
  ASSIGN_OR_RETURN(std::string absolute_folder, AbsoluteFolder(folder));
  toml::table document;
  try {
    document = toml::parse(text);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(file_name + ":" + std::to_string(LineOf(error.source())) +
                                      ": not valid TOML: " + std::string(error.description()));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(file_name + ":1: not valid TOML: " + error.what());
  }
  Reader reader(file_name, std::move(absolute_folder));
  reader.TakeFile(document);
  for (const Override& given : overrides) reader.TakeOverride(given);
  return reader.Finish();
}

absl::StatusOr<RunFile> LoadRunFile(const std::string& path,
                                    const std::vector<Override>& overrides) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(path + ": is a folder; a run file (TOML) is needed");
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return absl::NotFoundError(path + ": there is no such run file, or it cannot be read");
  }
  std::string text(kMaxFileBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return absl::UnavailableError(path + ": cannot be read");
  text.resize(static_cast<std::size_t>(in.gcount()));
  return ParseRunFile(text, path, std::filesystem::path(path).parent_path().string(), overrides);
}

std::string ToToml(const RunFile& run_file) {
  RunFile copy = run_file;
  std::string text;
  std::string_view section;
  for (const Field& field : run_file::FieldsOf(copy)) {
    if (field.section != section) {
      section = field.section;
      text += (text.empty() ? "[" : "\n[") + std::string(section) + "]\n";
    }
    text += std::string(field.key) + " = " + std::visit(ValueText{}, field.target) + "\n";
  }
  return text;
}

}  // namespace paceline
