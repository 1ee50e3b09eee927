// Chooses how to split a run over machines: tries every layout whose numbers fit, leaves out what
// memory does not hold, ranks the rest by an estimate, and simulates the best few.
// Invariant: equal questions give equal answers; ties go to the layout tried first (fewer stages,
// fewer expert ranks, the whole optimizer, smaller micro-batches).
// Threading: pure functions.
#pragma once

#include <string>
#include <vector>

#include "common/planning/prediction.h"
#include "common/status.h"

namespace paceline::planning {

struct Choice {
  Candidate candidate;
  StepSimulation step;  // without timeline
  std::string why;      // what it pays for
};

struct Choices {
  // At most 3, the best first, each another layout and not the same with other segments.
  std::vector<Choice> best;
  std::size_t tried = 0;    // layouts whose numbers fit
  std::size_t fitting = 0;  // of them, those that memory holds
};

// Over all slots of `machine`, whose rates are known. kOutOfRange: nothing fits into
// memory, and what comes nearest; kInvalidArgument: no layout's numbers fit, and why.
absl::StatusOr<Choices> ChooseLayout(const RunFile& run_file, const Machine& machine);

// The layout of `run_file` on `machine`: its numbers and memory checked. kOutOfRange names
// the nearest layout that does fit.
absl::StatusOr<Choice> CheckGiven(const RunFile& run_file, const Machine& machine);

// What the run file asks for.
Candidate GivenIn(const RunFile& run_file);

}  // namespace paceline::planning
