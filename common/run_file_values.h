// Reads one value of a run file into its place, by the schema's rule for it.
// Threading: pure, but for what it writes into the field's target and the findings.
#pragma once

#include <string>

#include "common/run_file_findings.h"
#include "common/run_file_schema.h"
#include "common/toml.h"

namespace paceline::run_file {

// A value as it was given, and how its relative paths resolve.
struct Given {
  const toml::node* node = nullptr;
  std::string folder;  // absolute
  bool by_override = false;
};

// Writes the value into field.target, or reports what is wrong with it and leaves the target.
void ReadValue(const Field& field, const Given& given, Findings& findings);

// A value as messages show it: on one line, cut when long.
std::string ShownValue(const toml::node& node);

}  // namespace paceline::run_file
