// Completion scripts for shells, made from the command line's own tree, so that they cannot
// name what is not there.
// Threading: pure functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace CLI {
class App;
}

namespace paceline::cli {

// `shell`: bash, zsh or fish. kInvalidArgument: another.
absl::StatusOr<std::string> CompletionScript(const CLI::App& app, const std::string& shell);

}  // namespace paceline::cli
