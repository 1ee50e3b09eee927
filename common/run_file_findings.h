// What is wrong with a run file, gathered so that all of it is told at once, each problem with
// the place its value came from.
// Invariant: problems come out in the order of the file's lines, those of --set last.
// Threading: plain values.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/run_file.h"

namespace paceline::run_file {

// Where a value stands.
struct Origin {
  int line = 0;             // in the file; 0: given by --set
  std::string shown_value;  // as messages show it
};

using KeyName = std::pair<std::string_view, std::string_view>;  // section, key

class Findings {
 public:
  explicit Findings(std::string file_name) : file_name_(std::move(file_name)) {}

  void SetSectionLine(std::string_view section, int line);
  void SetOrigin(std::string_view section, std::string_view key, Origin origin);

  // The value of `key` is wrong, or it is missing; `message` says what is allowed.
  void Report(std::string_view section, std::string_view key, const std::string& message);
  // Something that is no known key's value: `subject` is "[train] stpes", "[trian]", ...
  void ReportAtLine(int line, const std::string& subject, const std::string& message);
  void ReportOverride(const std::string& text, const std::string& message);

  // None of the keys has a problem so far: checks that relate them make sense.
  bool AreGood(std::initializer_list<KeyName> keys) const;
  absl::Status ToStatus() const;

 private:
  struct Problem {
    int line;  // problems of --set sort after all lines
    std::string text;
  };
  void Add(int line, std::string text);

  std::string file_name_;
  std::map<std::string, int, std::less<>> section_lines_;
  std::map<std::pair<std::string, std::string>, Origin> origins_;
  std::map<std::pair<std::string, std::string>, bool> bad_;
  std::vector<Problem> problems_;
  std::size_t left_out_ = 0;
};

// The checks that relate keys to each other, and those on what this build can do.
void CheckTogether(const RunFile& run_file, Findings& findings);

}  // namespace paceline::run_file
