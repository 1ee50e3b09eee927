// A run's status and summary as JSON: what `-o json` prints.
// Invariant: what is not finite is null, as JSON has no word for it.
// Threading: pure functions.
#pragma once

#include <string>

#include "launch/cli/run_view.h"
#include "nlohmann/json_fwd.hpp"

namespace paceline::cli {

nlohmann::json ToJson(const RunView& view);

// summary.json of a run that has ended, or, where there is none, what the view tells of it.
nlohmann::json SummaryOf(const RunFolder& folder, const RunView& view);

// Prints the object alone on stdout.
void PrintJson(const nlohmann::json& object);

}  // namespace paceline::cli
