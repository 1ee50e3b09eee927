#include "common/run_file.h"

#include <filesystem>
#include <string_view>
#include <utility>
#include <variant>

#include "common/run_file_findings.h"
#include "common/run_file_schema.h"
#include "common/settings_reader.h"
#include "common/status.h"
#include "common/toml.h"

namespace paceline {
namespace {

using run_file::Field;

// Where the file is silent, Hugging Face's defaults.
void DeriveDefaults(const run_file::SettingsReader& reader, ModelSection& model) {
  if (!reader.WasGiven("model", "num_key_value_heads")) {
    model.num_key_value_heads = model.num_attention_heads;
  }
  if (!reader.WasGiven("model", "head_dim") && model.num_attention_heads > 0 &&
      model.hidden_size % model.num_attention_heads == 0) {
    const std::int64_t head_dim = model.hidden_size / model.num_attention_heads;
    model.head_dim = head_dim < 2 || head_dim > 4096 ? 0 : head_dim;
  }
}

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

// Not written into the run file: with other `nodes` it is another.
std::int64_t LaunchSection::MinNodes() const {
  if (min_nodes > 0) return min_nodes;
  return launcher == "mpi" ? nodes : (nodes + 1) / 2;
}

absl::StatusOr<RunFile> ParseRunFile(const std::string& text, const std::string& file_name,
                                     const std::string& folder,
                                     const std::vector<Override>& overrides) {
  ASSIGN_OR_RETURN(std::string absolute_folder, run_file::AbsoluteFolder(folder));
  ASSIGN_OR_RETURN(const toml::table document, run_file::ParseToml(text, file_name, "run file"));
  RunFile result;
  run_file::SettingsReader reader(file_name, std::move(absolute_folder),
                                  run_file::FieldsOf(result));
  reader.TakeFile(document);
  for (const Override& given : overrides) reader.TakeOverride(given);
  reader.ReadValues();
  DeriveDefaults(reader, result.model);
  run_file::CheckTogether(result, reader.findings());
  RETURN_IF_ERROR(reader.findings().ToStatus());
  return result;
}

absl::StatusOr<RunFile> LoadRunFile(const std::string& path,
                                    const std::vector<Override>& overrides) {
  ASSIGN_OR_RETURN(const std::string text, run_file::ReadSettingsText(path, "run file"));
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
