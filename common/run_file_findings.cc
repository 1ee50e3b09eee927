#include "common/run_file_findings.h"

#include <algorithm>
#include <climits>

namespace paceline::run_file {
namespace {

// A file of garbage must not fill the terminal.
constexpr std::size_t kMaxProblems = 50;

std::pair<std::string, std::string> Owned(std::string_view section, std::string_view key) {
  return {std::string(section), std::string(key)};
}

}  // namespace

void Findings::SetSectionLine(std::string_view section, int line) {
  section_lines_[std::string(section)] = line;
}

void Findings::SetOrigin(std::string_view section, std::string_view key, Origin origin) {
  origins_[Owned(section, key)] = std::move(origin);
}

void Findings::Report(std::string_view section, std::string_view key, const std::string& message) {
  bad_[Owned(section, key)] = true;
  const std::string in_file = "[" + std::string(section) + "] " + std::string(key);
  const auto origin = origins_.find(Owned(section, key));
  if (origin == origins_.end()) {
    const auto line = section_lines_.find(section);
    ReportAtLine(line == section_lines_.end() ? 1 : line->second, in_file, message);
  } else if (origin->second.line > 0) {
    ReportAtLine(origin->second.line, in_file + " = " + origin->second.shown_value, message);
  } else {
    Add(INT_MAX, "--set " + std::string(section) + "." + std::string(key) + "=" +
                     origin->second.shown_value + ": " + message);
  }
}

void Findings::ReportAtLine(int line, const std::string& subject, const std::string& message) {
  line = std::max(line, 1);
  Add(line, file_name_ + ":" + std::to_string(line) + ": " + subject + ": " + message);
}

void Findings::ReportOverride(const std::string& text, const std::string& message) {
  Add(INT_MAX, "--set " + text + ": " + message);
}

bool Findings::AreGood(std::initializer_list<KeyName> keys) const {
  return std::none_of(keys.begin(), keys.end(), [this](const KeyName& key) {
    return bad_.count(Owned(key.first, key.second)) > 0;
  });
}

absl::Status Findings::ToStatus() const {
  if (problems_.empty()) return absl::OkStatus();
  std::vector<Problem> sorted = problems_;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Problem& a, const Problem& b) { return a.line < b.line; });
  std::string text;
  for (const Problem& problem : sorted) {
    if (!text.empty()) text += '\n';
    text += problem.text;
  }
  if (left_out_ > 0) {
    text += '\n' + file_name_ + ": " + std::to_string(left_out_) + " more problems";
  }
  return absl::InvalidArgumentError(text);
}

void Findings::Add(int line, std::string text) {
  if (problems_.size() == kMaxProblems) {
    ++left_out_;
    return;
  }
  problems_.push_back({line, std::move(text)});
}

}  // namespace paceline::run_file
