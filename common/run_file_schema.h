// The keys of a settings file: for each its place, its type and what it may be. Parsing,
// validating, printing and the messages for bad input all follow this one table. The run file's
// table stands here; the cluster file has its own.
// Invariant: every member of RunFile's sections has exactly one Field.
// Threading: plain values; a Field borrows what it was made for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "common/run_file.h"

namespace paceline::run_file {

struct IntegerRule {
  std::int64_t minimum = 0;
  std::int64_t maximum = 0;
};

struct RealRule {
  double minimum = 0;
  double maximum = 0;
  bool minimum_excluded = false;
  bool maximum_excluded = false;
};

struct FlagRule {};

struct NameRule {};      // letters, digits, '-', '_', '.'; becomes part of file names and labels
struct CurrencyRule {};  // three capital letters, ISO 4217

struct PathRule {
  bool resolve = false;  // against the run file's folder; from --set it always resolves
  bool may_be_empty = false;
};

struct ChoiceRule {
  std::vector<std::string_view> choices;
  std::size_t built = 0;  // this build has the first `built` of them; the others are refused
};

struct SourcesRule {
  bool may_be_empty = false;
};

using Rule = std::variant<IntegerRule, RealRule, FlagRule, NameRule, CurrencyRule, PathRule,
                          ChoiceRule, SourcesRule>;
using Target = std::variant<std::int64_t*, std::uint64_t*, double*, bool*, std::string*,
                            std::vector<DataSource>*>;

struct Field {
  std::string_view section;
  std::string_view key;
  Target target;
  Rule rule;
  bool required = false;
};

// Builds a table of fields, section by section.
class FieldList {
 public:
  // Fields added from here on belong to `section`.
  void Section(std::string_view section) { section_ = section; }
  void Add(std::string_view key, Target target, Rule rule) {
    fields_.push_back({section_, key, target, std::move(rule), /*required=*/false});
  }
  void AddRequired(std::string_view key, Target target, Rule rule) {
    fields_.push_back({section_, key, target, std::move(rule), /*required=*/true});
  }
  std::vector<Field> Take() { return std::move(fields_); }

 private:
  std::string_view section_;
  std::vector<Field> fields_;
};

// Every key of the run file, in the order in which ToToml prints them.
std::vector<Field> FieldsOf(RunFile& run_file);

// "an integer from 1 to 4096", "\"cosine\", \"constant\" or \"wsd\"".
std::string AllowedText(const Rule& rule);

// "2.0", "1e-05": the shortest text that reads back as the same bits, and is a TOML float.
std::string RealText(double value);
// A TOML basic string, quoted and escaped.
std::string QuotedText(const std::string& value);

// The candidate nearest to `word` by edit distance (a swap of neighbours counts one); empty
// when none is near.
std::string Nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace paceline::run_file
