// Trains a run inside the test's process: a thread for each rank, over Gloo on loopback, with
// the real trainer. What would go to an agent is collected instead.
// Threading: one TrainInProcess at a time for each checkpoint folder.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/run_file.h"
#include "common/status.h"
#include "paceline/v1/agent.pb.h"
#include "worker/trainer/generation_control.h"

namespace paceline {

struct RankOutcome {
  absl::Status status;
  std::vector<v1::WorkerMessage> messages;  // in the order sent
  std::vector<float> weights;               // at the end
  v1::RankProgress progress;                // at the end

  std::vector<double> losses() const;  // of the StepRecords
  std::vector<v1::CheckpointPart> parts(std::int64_t step) const;
  std::int64_t finished_step() const;  // -1: never said RankFinished
};

struct InProcessOptions {
  std::string checkpoint;  // to start from
  std::int64_t start_step = 0;
  std::int64_t granted_until = -1;  // -1: all steps
  bool pin = false;                 // rank r and all its threads to the r-th core of this process
  // Called on the step thread of `rank` for each message it sends, with its control.
  std::function<void(int rank, const v1::WorkerMessage&, GenerationControl&)> on_message;
};

// Binds this thread, and those that it starts from here on, to the index-th core of this process.
void PinToCore(int index);

// One outcome a rank, in rank order. Every rank ends, or the test's own limit does.
std::vector<RankOutcome> TrainInProcess(const RunFile& run_file, int ranks,
                                        const InProcessOptions& options);

// Commits the checkpoint of `step` as the coordinator would: manifest.json over all parts.
// Returns the checkpoint's folder.
std::string CommitCheckpoint(const RunFile& run_file, const std::vector<RankOutcome>& outcomes,
                             std::int64_t step);

// What `ranks` ranks in the layout of `run_file` read from `checkpoint` and save as it is: the
// folder of that second checkpoint, of the same step, in run_file.checkpoint.dir.
std::string SaveAgain(const RunFile& run_file, int ranks, const std::string& checkpoint);

// A small sparse model and a corpus of `tokens` tokens in llm.c's format in `folder`.
RunFile TinyRun(const std::string& folder, std::int64_t tokens);

}  // namespace paceline
