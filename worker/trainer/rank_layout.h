// The layout that a rank is told, as the coordinator's message has it.
// Threading: pure functions.
#pragma once

#include "common/parallel_layout.h"
#include "common/run_file.h"
#include "common/status.h"
#include "paceline/v1/agent.pb.h"

namespace paceline {

ParallelLayout LayoutOf(const v1::Layout& told);

// kInvalidArgument: the rank has no place in its layout, or the run does not fit the layout; says
// which number is wrong. A trainer relies on what passed here.
absl::Status CheckRankStart(const RunFile& run_file, const v1::RankStart& start);

}  // namespace paceline
