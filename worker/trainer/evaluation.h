// Loss on held-out text, spread over the data-parallel ranks and the stages of their pipelines.
// Invariant: the result does not depend on how many ranks share the work (each micro-batch's
// loss is rounded to float32 once; a sum of a few of those in float64 is exact).
// Threading: belongs to the step thread.
#pragma once

#include "common/run_file.h"
#include "common/status.h"
#include "paceline/v1/training.pb.h"
#include "worker/collectives/parallel_groups.h"
#include "worker/trainer/batch_loader.h"
#include "worker/trainer/pipeline_executor.h"

namespace paceline {

// The first [train] eval_batches global batches of `valid` (or all of it, where it is shorter).
// Fills valid_loss, tokens and eval_seconds. Collective: every rank of `groups` calls it.
absl::StatusOr<v1::EvalRecord> Evaluate(const RunFile& run_file, PipelineExecutor& executor,
                                        BatchLoader& valid, ParallelGroups& groups, Stream& stream);

}  // namespace paceline
