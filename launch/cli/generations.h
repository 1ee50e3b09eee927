// The generations of a run, out of its events: from what each began, on what it trained, how far it
// came, when and why it ended.
// Invariant: nothing is told but what an event says; what no event says is null.
// Threading: pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "launch/cli/run_events.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {

// An array, the oldest first, of the generations that `events` (RunEvents::Events) knows of.
// docs/cli.md lists the keys; every generation has all of them.
nlohmann::json GenerationsOf(const std::vector<RunEvent>& events);

// The newest `rows_max` of GenerationsOf as a table, a line each, times local.
std::string GenerationTable(const nlohmann::json& generations, std::size_t rows_max);

}  // namespace paceline::cli
