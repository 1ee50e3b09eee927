// Who made a number that is not finite: the step is computed again, since the weights have not
// moved, and looked at micro-batch by micro-batch.
// Threading: belongs to the step thread.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "worker/collectives/communicator.h"
#include "worker/model/model.h"
#include "worker/trainer/pipeline_executor.h"

namespace paceline {

// This rank's first finding: "micro-batch 2 of 4: the gradient of model.norm.weight is not
// finite"; empty where everything is finite. `handlers` load the micro-batches and scale the loss.
// Collective: every rank of the layout runs its passes to the end, whatever it has found.
absl::StatusOr<std::string> FindNonFinite(Model& model, PipelineExecutor& executor,
                                          const std::vector<PipelineAction>& actions,
                                          PassHandlers handlers, Stream& compute);

// The finding of the first rank that has one, with the rank's number before it, on every rank;
// empty where no rank has any. Findings are cut off at 255 bytes. Collective.
absl::StatusOr<std::string> FirstFinding(const std::string& own, Communicator& world,
                                         Stream& stream);

}  // namespace paceline
