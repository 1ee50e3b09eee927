// Reads a TOML file of sections into its place, by a table of fields: the run file and the
// cluster file are both read so, with the same messages.
//
//   SettingsReader reader("my.toml", folder, FieldsOf(result));
//   reader.TakeFile(document);
//   reader.ReadValues();
//   ...checks of one's own, into reader.findings()...
//   RETURN_IF_ERROR(reader.findings().ToStatus());
//
// Invariant: what has a problem leaves its target as it was.
// Threading: plain values; borrows what the fields point at, and the document.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/run_file.h"
#include "common/run_file_findings.h"
#include "common/run_file_schema.h"
#include "common/run_file_values.h"
#include "common/toml.h"

namespace paceline::run_file {

class SettingsReader {
 public:
  // `folder`: absolute; relative paths resolve against it.
  SettingsReader(const std::string& file_name, std::string folder, std::vector<Field> fields);

  void TakeFile(const toml::table& document);
  void TakeOverride(const Override& given);
  // Reads what was taken into the fields' targets, and reports what is wrong or missing.
  void ReadValues();

  bool WasGiven(const std::string& section, const std::string& key) const;
  Findings& findings() { return findings_; }

 private:
  void TakeSection(const std::string& section, const toml::table& table, int line);
  void TakeOverrideValue(const Override& given, const std::string& section, const std::string& key,
                         const std::string& value);
  bool Knows(const std::string& section, const std::string& key) const;
  std::string SectionThatHas(const std::string& key) const;
  std::string UnknownSection(const std::string& section, bool is_table) const;
  std::string UnknownKey(const std::string& section, const std::string& key,
                         bool by_override) const;

  Findings findings_;
  std::string folder_;
  std::vector<Field> fields_;
  std::map<std::string, std::vector<std::string>> keys_;
  std::map<std::pair<std::string, std::string>, Given> given_;
  std::vector<std::unique_ptr<toml::table>> override_values_;  // keep Given::node alive
};

// A file of `kind` ("run file") larger than 1 MiB, or no TOML: kInvalidArgument.
absl::StatusOr<toml::table> ParseToml(const std::string& text, const std::string& file_name,
                                      std::string_view kind);
// kNotFound: there is no such file.
absl::StatusOr<std::string> ReadSettingsText(const std::string& path, std::string_view kind);

absl::StatusOr<std::string> AbsoluteFolder(const std::string& folder);

}  // namespace paceline::run_file
